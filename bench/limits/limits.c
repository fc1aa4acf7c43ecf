/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What bounds a transport on this machine, in plain C. Prints nanoseconds: a message, or the median round trip.
 *
 *   limits memcpy SIZE                                into a ring of 256 buffers, and out again
 *   limits both SIZE BATCH COUNT driver|device [packed]   one thread is both ends of a link; the sender is named
 *   limits line CPU CPU                               round trip of a cache line between two CPUs
 *   limits eventfd|futex CPU CPU                      round trip of two processes that sleep
 *   limits stream SIZE BATCH COUNT driver|device CPU CPU [packed]
 *                                                     two processes that spin; the first CPU is the sender's
 *   limits echo SIZE CPU CPU [packed]                 round trip over a link, spinning
 */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "link.h"

#define TRIPS 2000
#define LINE_PIECES 400
#define LINE_TRIPS 50
#define WARM 8192u
#define SPINS 16384 /* looks before the CPU is offered to somebody else: they may have to share one */

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void pin(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	if (sched_setaffinity(0, sizeof set, &set) != 0) {
		perror("sched_setaffinity");
		exit(1);
	}
}

static void *shared(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (p == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return p;
}

/* True in the child, which runs on `there` and dies with the parent, which runs on `here`. */
static bool split(int here, int there)
{
	pid_t pid = fork();
	if (pid < 0) {
		perror("fork");
		exit(1);
	}
	if (pid == 0)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	pin(pid == 0 ? there : here);
	return pid == 0;
}

static inline void pause_after(int *spins)
{
	if (++*spins % SPINS == 0)
		sched_yield();
}

static int by_size(const void *a, const void *b)
{
	const double *x = a, *y = b;
	return (*x > *y) - (*x < *y);
}

static double median(double *values, size_t n)
{
	qsort(values, n, sizeof *values, by_size);
	return values[n / 2];
}

/* --------------------------------------------------------------------------------------------- one thread ---- */

static double bench_memcpy(uint32_t size)
{
	enum { ROUNDS = 4000 };
	static uint8_t ring[NUM * BUF], in[BUF], out[BUF];
	double begin = now();
	for (int round = 0; round < ROUNDS; round++) {
		for (uint32_t i = 0; i < NUM; i++) {
			memcpy(ring + i * BUF, out, size);
			__asm__ volatile("" ::: "memory");
			memcpy(in, ring + i * BUF, size);
			__asm__ volatile("" ::: "memory");
		}
	}
	return (now() - begin) / ROUNDS / NUM;
}

static double bench_both(uint32_t size, uint32_t batch, uint32_t count, bool from_driver, bool packed)
{
	static struct link l;
	static uint8_t in[BUF], out[BUF];
	link_open(&l, shared(LINK_BYTES), packed);
	struct rpx_tx *tx = from_driver ? &l.driver.tx : &l.device.tx;
	struct rpx_rx *rx = from_driver ? &l.device.rx : &l.driver.rx;
	double begin = 0;
	for (uint32_t n = 0; n < WARM + count;) {
		if (begin == 0 && n >= WARM)
			begin = now();
		if (batch == 1) {
			if (!link_send1(tx, out, size) || !link_receive1(rx, in))
				abort();
			n++;
		} else {
			uint32_t sent = link_send(tx, out, size, batch);
			if (sent == 0 || link_receive(rx, in, sent) != sent)
				abort();
			n += sent;
		}
	}
	return (now() - begin) / count;
}

/* ------------------------------------------------------------------------------------------ two processes ---- */

static double bench_line(int a, int b)
{
	atomic_uint *turn = shared(4096);
	int spins = 0;
	if (split(a, b)) {
		for (unsigned n = 1;; n += 2) {
			while (atomic_load_explicit(turn, memory_order_acquire) != n)
				pause_after(&spins);
			atomic_store_explicit(turn, n + 1, memory_order_release);
		}
	}
	static double pieces[LINE_PIECES]; /* of which the median does not mind interruptions */
	unsigned n = 0;
	for (int i = 0; i < LINE_PIECES; i++) {
		double begin = now();
		for (int trip = 0; trip < LINE_TRIPS; trip++, n += 2) {
			atomic_store_explicit(turn, n + 1, memory_order_release);
			while (atomic_load_explicit(turn, memory_order_acquire) != n + 2)
				pause_after(&spins);
		}
		pieces[i] = (now() - begin) / LINE_TRIPS;
	}
	return median(pieces, LINE_PIECES);
}

static void await(int event)
{
	struct pollfd fd = { .fd = event, .events = POLLIN };
	eventfd_t value;
	if (poll(&fd, 1, -1) != 1 || eventfd_read(event, &value) != 0)
		abort();
}

static double bench_eventfd(int a, int b)
{
	static double trips[TRIPS];
	int there = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), back = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (split(a, b)) {
		for (;;) {
			await(there);
			eventfd_write(back, 1);
		}
	}
	for (int i = 0; i < TRIPS; i++) {
		double begin = now();
		eventfd_write(there, 1);
		await(back);
		trips[i] = now() - begin;
	}
	return median(trips, TRIPS);
}

static void futex_wait(atomic_uint *word, unsigned value)
{
	while (atomic_load(word) == value)
		syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word)
{
	atomic_fetch_add(word, 1);
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static double bench_futex(int a, int b)
{
	static double trips[TRIPS];
	atomic_uint *words = shared(4096); /* there, back */
	atomic_uint *back = words + 64;
	if (split(a, b)) {
		for (unsigned i = 0;; i++) {
			futex_wait(words, i);
			futex_wake(back);
		}
	}
	for (unsigned i = 0; i < TRIPS; i++) {
		double begin = now();
		futex_wake(words);
		futex_wait(back, i);
		trips[i] = now() - begin;
	}
	return median(trips, TRIPS);
}

static void stream_send(struct rpx_tx *tx, uint32_t size, uint32_t batch, uint32_t count)
{
	static uint8_t data[BUF];
	int spins = 0;
	while (count > 0) {
		uint32_t n = batch == 1 ? link_send1(tx, data, size) : link_send(tx, data, size, batch < count ? batch : count);
		count -= n;
		if (n == 0)
			pause_after(&spins);
	}
}

static void stream_receive(struct rpx_rx *rx, uint32_t batch, uint32_t count)
{
	static uint8_t data[BUF];
	int spins = 0;
	while (count > 0) {
		uint32_t n = batch == 1 ? link_receive1(rx, data) : link_receive(rx, data, batch < count ? batch : count);
		count -= n;
		if (n == 0)
			pause_after(&spins);
	}
}

static double bench_stream(uint32_t size, uint32_t batch, uint32_t count, bool from_driver, bool packed, int a, int b)
{
	static struct link l;
	link_open(&l, shared(LINK_BYTES), packed);
	struct rpx_tx *tx = from_driver ? &l.driver.tx : &l.device.tx;
	struct rpx_rx *rx = from_driver ? &l.device.rx : &l.driver.rx;
	if (split(b, a)) {
		stream_send(tx, size, batch, WARM + count);
		_exit(0);
	}
	stream_receive(rx, batch, WARM);
	double begin = now();
	stream_receive(rx, batch, count);
	return (now() - begin) / count;
}

static double bench_echo(uint32_t size, bool packed, int a, int b)
{
	enum { ALL = 10 * TRIPS };
	static struct link l;
	static double trips[ALL];
	static uint8_t data[BUF];
	int spins = 0;
	link_open(&l, shared(LINK_BYTES), packed);
	if (split(a, b)) {
		for (;;) {
			while (!link_receive1(&l.device.rx, data))
				pause_after(&spins);
			while (!link_send1(&l.device.tx, data, size))
				pause_after(&spins);
		}
	}
	for (int i = 0; i < ALL; i++) {
		double begin = now();
		while (!link_send1(&l.driver.tx, data, size))
			pause_after(&spins);
		while (!link_receive1(&l.driver.rx, data))
			pause_after(&spins);
		trips[i] = now() - begin;
	}
	return median(trips, ALL);
}

static int usage(void)
{
	fputs("usage: limits memcpy|both|line|eventfd|futex|stream|echo ...\n", stderr);
	return 2;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	long n[5] = { 0 };
	uint32_t numbers = 0;
	bool from_driver = true, packed = false;
	double ns;
	for (int i = 2; i < argc; i++) {
		if (strcmp(argv[i], "driver") == 0 || strcmp(argv[i], "device") == 0)
			from_driver = strcmp(argv[i], "driver") == 0;
		else if (strcmp(argv[i], "packed") == 0)
			packed = true;
		else if (numbers < 5)
			n[numbers++] = strtol(argv[i], NULL, 0);
	}
	uint32_t size = (uint32_t)n[0], batch = (uint32_t)n[1], count = (uint32_t)n[2];
	bool sized = size <= BUF - RPX_HDR && batch > 0 && batch <= NUM && count > 0;
	if (strcmp(what, "memcpy") == 0 && numbers == 1 && size <= BUF)
		ns = bench_memcpy(size);
	else if (strcmp(what, "both") == 0 && numbers == 3 && sized)
		ns = bench_both(size, batch, count, from_driver, packed);
	else if (strcmp(what, "line") == 0 && numbers == 2)
		ns = bench_line((int)n[0], (int)n[1]);
	else if (strcmp(what, "eventfd") == 0 && numbers == 2)
		ns = bench_eventfd((int)n[0], (int)n[1]);
	else if (strcmp(what, "futex") == 0 && numbers == 2)
		ns = bench_futex((int)n[0], (int)n[1]);
	else if (strcmp(what, "stream") == 0 && numbers == 5 && sized)
		ns = bench_stream(size, batch, count, from_driver, packed, (int)n[3], (int)n[4]);
	else if (strcmp(what, "echo") == 0 && numbers == 3 && size <= BUF - RPX_HDR)
		ns = bench_echo(size, packed, (int)n[1], (int)n[2]);
	else
		return usage();
	printf("%.2f\n", ns);
	return 0;
}
