/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which accesses are made to device memory: naturally aligned ones of 1, 2, 4 or 8 bytes, by the code itself and not by
 * memcpy or memset.
 *
 *     gcc -O2 -fsanitize=thread -c device.c       a call before each access; its runtime is not linked
 *     gcc device.o -Wl,--wrap=memcpy,--wrap=memmove,--wrap=memset
 *
 * Every message length goes both ways over each of the ways that there are to send and receive. -DKIND=RPX_KIND_UNCACHED
 * shows that what is forbidden would be seen. Exit status: 0 fine, 1 a forbidden access, 2 wrong data.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rpx.h"

#ifndef KIND
#define KIND RPX_KIND_DEVICE
#endif
#define NUM 8u
#define BUF 108u /* of a buffer: some begin 4 bytes before a multiple of 8 */
#define ROOM (BUF - RPX_HDR)
#define ALIGN 64u
#define ADDR 0x40000000u

/* ------------------------------------------------------------------------------------------------ the watch ----- */

#define QUIET __attribute__((no_sanitize("thread")))

static _Alignas(4096) uint8_t memory[16384];
static unsigned long seen, forbidden;
static unsigned width_seen[9];

static QUIET void look(const char *what, const volatile void *p, size_t n, bool single)
{
	uintptr_t at = (uintptr_t)p, low = (uintptr_t)memory;
	if (n == 0 || at + n <= low || at >= low + sizeof memory)
		return;
	seen++;
	if (single && n <= 8 && at % n == 0) {
		width_seen[n]++;
		return;
	}
	if (forbidden++ < 5)
		printf("  %s of %zu bytes at offset %zu\n", what, n, (size_t)(at - low));
}

/*
 * What the compiler calls before an access, by its width and by what it knows of its alignment; atomic accesses it leaves
 * to these altogether. The names in C are ours, as a compiler has ideas of its own about the types of theirs.
 */
#define HOOK(name, text, n, single) \
	void hook_##name(void *p) __asm__("__tsan_" #name); \
	QUIET void hook_##name(void *p) { look(text, p, n, single); }
#define HOOKS(n) HOOK(read##n, "a read", n, true) HOOK(write##n, "a write", n, true)
#define HOOKS_UNALIGNED(n) \
	HOOK(unaligned_read##n, "an unaligned read", n, false) HOOK(unaligned_write##n, "an unaligned write", n, false)
#define HOOKS_ATOMIC(bits, type) \
	type hook_load##bits(const volatile type *p, int order) __asm__("__tsan_atomic" #bits "_load"); \
	void hook_store##bits(volatile type *p, type v, int order) __asm__("__tsan_atomic" #bits "_store"); \
	QUIET type hook_load##bits(const volatile type *p, int order) \
	{ \
		(void)order; \
		look("a load", p, sizeof *p, true); \
		return *p; \
	} \
	QUIET void hook_store##bits(volatile type *p, type v, int order) \
	{ \
		(void)order; \
		look("a store", p, sizeof *p, true); \
		*p = v; \
	}
#define HOOK_RANGE(name, text) \
	void hook_##name(void *p, size_t n) __asm__("__tsan_" #name); \
	QUIET void hook_##name(void *p, size_t n) { look(text, p, n, false); }
#define HOOK_NOTHING(name) \
	void hook_##name(void) __asm__("__tsan_" #name); \
	QUIET void hook_##name(void) {}

HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
HOOKS_UNALIGNED(2) HOOKS_UNALIGNED(4) HOOKS_UNALIGNED(8) HOOKS_UNALIGNED(16)
HOOKS_ATOMIC(8, uint8_t) HOOKS_ATOMIC(16, uint16_t) HOOKS_ATOMIC(32, uint32_t) HOOKS_ATOMIC(64, uint64_t)
/* The fence of atomic.h under this flag, on private memory. */
int hook_exchange(volatile int *p, int v, int order) __asm__("__tsan_atomic32_exchange");
QUIET int hook_exchange(volatile int *p, int v, int order)
{
	int before = *p;
	(void)order;
	look("a locked operation", p, sizeof *p, false);
	*p = v;
	return before;
}

HOOK_RANGE(read_range, "a read") HOOK_RANGE(write_range, "a write")
HOOK_NOTHING(init) HOOK_NOTHING(func_entry) HOOK_NOTHING(func_exit)

void *__real_memcpy(void *to, const void *from, size_t n);
void *__real_memmove(void *to, const void *from, size_t n);
void *__real_memset(void *to, int c, size_t n);
void *__wrap_memcpy(void *to, const void *from, size_t n);
void *__wrap_memmove(void *to, const void *from, size_t n);
void *__wrap_memset(void *to, int c, size_t n);

QUIET void *__wrap_memcpy(void *to, const void *from, size_t n)
{
	look("memcpy to", to, n, false);
	look("memcpy from", from, n, false);
	return __real_memcpy(to, from, n);
}

QUIET void *__wrap_memmove(void *to, const void *from, size_t n)
{
	look("memmove to", to, n, false);
	look("memmove from", from, n, false);
	return __real_memmove(to, from, n);
}

QUIET void *__wrap_memset(void *to, int c, size_t n)
{
	look("memset", to, n, false);
	return __real_memset(to, c, n);
}

/* -------------------------------------------------------------------------------------------------- a link ------ */

struct side {
	struct rpx_rx rx;
	struct rpx_tx tx;
	struct rpx_drv drv_rx, drv_tx;
	struct rpx_dev dev_rx, dev_tx;
	struct rpx_drv_slot slots[2][NUM];
	uint32_t seen[2][NUM], spare[NUM];
	uint8_t scratch[4 * BUF];
};

static struct side driver, device;
static struct rpx_ring rings[2];
static struct rpx_region region = { memory, ADDR, sizeof memory, RPX_PERM_READ | RPX_PERM_WRITE };
static const struct rpx_mem mem = { &region, 1 };

static void wrong(const char *what, long a, long b)
{
	printf("FAIL %s (%ld, %ld)\n", what, a, b);
	exit(2);
}

static struct rpx_pool pool(uint32_t at)
{
	return (struct rpx_pool){ memory + at, ADDR + at, BUF, NUM };
}

static void link_up(bool event_idx)
{
	for (uint32_t i = 0; i < 2; i++) {
		if (rpx_ring_init_legacy(&rings[i], memory + 2048u * i, NUM, ALIGN, rpx_kind_order(KIND), false) != 0)
			wrong("ring", (long)i, 0);
		rpx_ring_zero(&rings[i]);
		rings[i].event_idx = event_idx;
	}
	rpx_drv_init(&driver.drv_rx, &rings[0], driver.slots[0]);
	rpx_drv_init(&driver.drv_tx, &rings[1], driver.slots[1]);
	rpx_dev_init(&device.dev_tx, &rings[0], device.seen[0], 0, 0);
	rpx_dev_init(&device.dev_rx, &rings[1], device.seen[1], 0, 0);
	driver.rx = (struct rpx_rx){ .drv = &driver.drv_rx, .pool = pool(8192), .kind = KIND };
	driver.tx = (struct rpx_tx){ .drv = &driver.drv_tx, .pool = pool(12288), .spare = driver.spare, .kind = KIND };
	device.rx = (struct rpx_rx){ .dev = &device.dev_rx, .mem = &mem, .scratch = device.scratch,
				     .scratch_size = sizeof device.scratch, .kind = KIND };
	device.tx = (struct rpx_tx){ .dev = &device.dev_tx, .mem = &mem, .spare = device.spare, .kind = KIND };
	rpx_tx_start_drv(&driver.tx);
	if (rpx_rx_post(&driver.rx) != 0)
		wrong("post", 0, 0);
	rpx_rx_publish(&driver.rx);
}

static const uint8_t *payload(uint32_t len)
{
	static uint8_t bytes[ROOM + 8];
	for (uint32_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (uint8_t)(i * 37u + len);
	return bytes + len % 8; /* the private side may lie anywhere */
}

static void send_one(struct side *s, uint32_t len, uint32_t way)
{
	struct rpx_txbuf buf;
	struct rpx_tx_run run;
	bool sent = false;
	switch (way) {
	case 0:
		sent = rpx_tx_send(&s->tx, 1, 2, payload(len), len) == RPX_TX_BUFFER;
		break;
	case 1: /* a loan */
		if (rpx_tx_get(&s->tx, &buf) != RPX_TX_BUFFER)
			break;
		rpx_tx_unget(&s->tx, &buf);
		if (rpx_tx_get(&s->tx, &buf) != RPX_TX_BUFFER)
			break;
		rpx_copy_to(buf.data, payload(len), len, KIND);
		sent = rpx_tx_put(&s->tx, &buf, 1, 2, len) == 0;
		break;
	default:
		rpx_tx_run_begin(&run, &s->tx, 1);
		sent = rpx_tx_run_turn(&run, 1, 2, payload(len), len);
		rpx_tx_run_end(&run, &s->tx);
		if (!sent) /* at first there is no buffer to be had that way */
			sent = rpx_tx_send(&s->tx, 1, 2, payload(len), len) == RPX_TX_BUFFER;
	}
	if (!sent)
		wrong("no buffer", (long)len, (long)way);
	rpx_tx_publish(&s->tx);
}

static void check(const struct rpx_msg *msg, uint32_t len)
{
	uint8_t bytes[ROOM + 8];
	if (msg->src != 1 || msg->dst != 2 || msg->len != len)
		wrong("header", (long)msg->len, (long)len);
	rpx_copy_from(bytes + (len + 3) % 8, msg->data, len, msg->copied ? RPX_KIND_CACHED : KIND);
	if (memcmp(bytes + (len + 3) % 8, payload(len), len) != 0)
		wrong("bytes", (long)len, 0);
}

static void receive_one(struct side *s, uint32_t len, uint32_t way)
{
	struct rpx_msg msg;
	struct rpx_rx_run run;
	bool got = false;
	rpx_rx_mute(&s->rx);
	switch (way) {
	case 0:
		got = rpx_rx_peek(&s->rx, &msg);
		if (got) {
			check(&msg, len);
			rpx_rx_turn(&s->rx, &msg);
		}
		break;
	case 1:
		got = rpx_rx_next(&s->rx, &msg) == RPX_RX_MESSAGE;
		if (got) {
			check(&msg, len);
			got = rpx_rx_done(&s->rx, msg.token) == 0;
		}
		break;
	default:
		rpx_rx_run_begin(&run, &s->rx, 1);
		got = rpx_rx_run_peek(&run, &msg);
		if (got) {
			check(&msg, len);
			rpx_rx_run_turn(&run, &msg);
		}
		rpx_rx_run_end(&run, &s->rx);
	}
	if (!got)
		wrong("no message", (long)len, (long)way);
	rpx_rx_publish(&s->rx);
	if (rpx_rx_unmute(&s->rx))
		wrong("more messages", (long)len, (long)way);
}

static void every_length(bool event_idx)
{
	link_up(event_idx);
	for (uint32_t len = 0; len <= ROOM; len++)
		for (uint32_t way = 0; way < 3; way++) {
			send_one(&driver, len, way);
			receive_one(&device, len, (way + len) % 3);
			send_one(&device, len, way);
			receive_one(&driver, len, (way + len) % 3);
		}
}

/* A message that a driver has cut into pieces at odd places. */
static void chains(void)
{
	for (uint32_t cut = RPX_HDR; cut < RPX_HDR + 40u; cut++) {
		uint8_t whole[BUF];
		struct rpx_rpmsg_hdr *h = (struct rpx_rpmsg_hdr *)(void *)(memory + 12288);
		struct rpx_sg sg[3] = { { ADDR + 12288, cut }, { ADDR + 13001, 33 }, { ADDR + 13303, 50 } };
		uint32_t len = cut - RPX_HDR + 33 + 50;
		struct rpx_msg msg;
		link_up(false);
		if (len > ROOM)
			len = ROOM, sg[2].len = ROOM - 33 - (cut - RPX_HDR);
		for (uint32_t i = 0; i < len; i++)
			whole[i] = payload(len)[i];
		rpx_put32(&h->src, 1, false);
		rpx_put32(&h->dst, 2, false);
		rpx_put16(&h->len, (uint16_t)len, false);
		rpx_copy_to(memory + 12288 + RPX_HDR, whole, cut - RPX_HDR, KIND);
		rpx_copy_to(memory + 13001, whole + (cut - RPX_HDR), 33, KIND);
		rpx_copy_to(memory + 13303, whole + (cut - RPX_HDR) + 33, sg[2].len, KIND);
		rpx_drv_init(&driver.drv_tx, &rings[1], driver.slots[1]);
		if (rpx_drv_add(&driver.drv_tx, sg, 3, 0, 0) != 0)
			wrong("chain", (long)cut, 0);
		rpx_drv_publish(&driver.drv_tx);
		if (rpx_rx_next(&device.rx, &msg) != RPX_RX_MESSAGE || !msg.copied)
			wrong("gathered", (long)cut, 0);
		check(&msg, len);
	}
}

/* A driver that takes up the rings of another. */
static void resumed(void)
{
	link_up(true);
	for (uint32_t i = 0; i < 5; i++) {
		send_one(&driver, i, 0);
		send_one(&device, i, 0);
	}
	rpx_drv_init(&driver.drv_rx, &rings[0], driver.slots[0]);
	rpx_drv_init(&driver.drv_tx, &rings[1], driver.slots[1]);
	if (rpx_rx_resume(&driver.rx) != NULL || rpx_tx_resume(&driver.tx) != NULL)
		wrong("resume", 0, 0);
	for (uint32_t i = 0; i < 5; i++) {
		struct rpx_msg msg;
		if (rpx_rx_next(&driver.rx, &msg) != RPX_RX_MESSAGE)
			wrong("resumed", (long)i, 0);
		check(&msg, i);
	}
}

int main(void)
{
	every_length(false);
	every_length(true);
	chains();
	resumed();
	printf("%lu accesses (%u, %u, %u, %u of 1, 2, 4, 8 bytes), %lu forbidden\n", seen, width_seen[1], width_seen[2],
	       width_seen[4], width_seen[8], forbidden);
	return forbidden != 0;
}
