/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Driver and device in two threads, as fast as they can:
 *
 *   stress ring|rpmsg NUM COUNT [FLAGS]     FLAGS: e EVENT_IDX, s swapped fields, l legacy layout, d device barriers,
 *                                                  p packed ring
 *
 * A side sleeps only after un-muting and looking once more, and only a kick that the ring asked for wakes it. So a lost
 * kick or a missing fence is a stall. Sleeping is a bare futex with relaxed counters: it lends the ring no order that
 * ThreadSanitizer could see. The shared memory lies between two pages that nobody may touch.
 *
 * Exit status: 0 fine, 1 wrong data or a broken ring, 2 usage, 3 stall.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RPX_ANY_ENDIAN /* run the byte-swapped paths on this machine too */
#include "rpx.h"

#define STALL_SECONDS 4
#define STALL_ROUNDS 10 /* of idle waiting, where the ring itself holds nothing for us */
#define ADDR 0x80000000u
#define SEGS 4u
#define SEG 64u
#define SLOT (SEGS * SEG + 16u * SEGS) /* what one chain uses: its segments and an indirect table */
#define BUF 128u

static const char *what;
static uint32_t num, count;
static bool event_idx, swap, legacy, device_order, packed;

static void die(int status, const char *who, const char *why, long a, long b)
{
	printf("FAIL %s: %s: %s (%ld, %ld)\n", what, who, why, a, b);
	fflush(stdout);
	_exit(status);
}

/* ------------------------------------------------------------------------------------------- random and sleep ---- */

struct rng { uint64_t s; };

static uint32_t rng_next(struct rng *r)
{
	r->s ^= r->s << 13;
	r->s ^= r->s >> 7;
	r->s ^= r->s << 17;
	return (uint32_t)(r->s >> 32);
}

/* The bytes of message `seq` from `who`; both sides can tell. */
static void fill(uint8_t *to, uint32_t n, uint32_t who, uint32_t seq)
{
	struct rng r = { (uint64_t)seq * 0x9e3779b97f4a7c15u + who + 1 };
	for (uint32_t i = 0; i < n; i++)
		to[i] = (uint8_t)rng_next(&r);
}

static uint32_t checksum(const uint8_t *p, uint32_t n)
{
	uint32_t a = 1, b = 0;
	for (uint32_t i = 0; i < n; i++) {
		a = (a + p[i]) % 65521;
		b = (b + a) % 65521;
	}
	return b << 16 | a;
}

struct doorbell {
	uint32_t rung;
	uint32_t heard; /* the sleeper's own */
	uint32_t sleeps;
};

static struct doorbell bells[2]; /* of the driver, of the device */
enum { DRIVER, DEVICE };
static const char *const names[2] = { "driver", "device" };

static void kick(int who)
{
	__atomic_fetch_add(&bells[who].rung, 1, __ATOMIC_RELAXED);
	syscall(SYS_futex, &bells[who].rung, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* Until the next kick that was not heard yet. False: none came for STALL_SECONDS. */
static bool wait_kick(int who)
{
	struct doorbell *b = &bells[who];
	const struct timespec limit = { STALL_SECONDS, 0 };
	uint32_t rung;
	b->sleeps++;
	while ((rung = __atomic_load_n(&b->rung, __ATOMIC_RELAXED)) == b->heard)
		if (syscall(SYS_futex, &b->rung, FUTEX_WAIT, rung, &limit, NULL, 0) != 0 && errno == ETIMEDOUT)
			return false;
	b->heard = rung;
	return true;
}

/* Sleep; if nobody kicks, `pending` tells a lost wake-up from a peer that is merely slow. */
static void sleep_until_kicked(int who, bool (*pending)(int who), long progress)
{
	for (int round = 0; !wait_kick(who); round++)
		if (pending(who) || round == STALL_ROUNDS)
			die(3, names[who], pending(who) ? "lost wake-up" : "nothing happens", progress, round);
}

/* ---------------------------------------------------------------------------------------------- shared memory ---- */

static uint8_t *shared, *shared_end, *shared_next;

static void map_shared(size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	size_t inner = (bytes + page - 1) / page * page;
	uint8_t *p = mmap(NULL, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED || mprotect(p + page, inner, PROT_READ | PROT_WRITE) != 0)
		die(2, "mmap", strerror(errno), 0, 0);
	shared = shared_next = p + page;
	shared_end = p + page + inner;
}

/* Pieces from the low edge upwards; the last one is taken from the high edge with take_end. */
static uint8_t *take(size_t bytes, size_t align)
{
	size_t at = ((size_t)(shared_next - shared) + align - 1) / align * align;
	shared_next = shared + at + bytes;
	return shared + at;
}

static uint8_t *take_end(size_t bytes)
{
	if (shared_next + bytes > shared_end)
		die(2, "memory", "too small", (long)bytes, 0);
	return shared_end - bytes;
}

static uint64_t addr_of(const uint8_t *p)
{
	return ADDR + (uint64_t)(p - shared);
}

static void make_ring(struct rpx_ring *r)
{
	enum rpx_order order = device_order ? RPX_ORDER_DEVICE : RPX_ORDER_SMP;
	int rc;
	if (legacy) {
		rc = rpx_ring_init_legacy(r, take(rpx_ring_bytes(num, 64), 64), num, 64, order, swap);
	} else {
		uint8_t *desc = take(16u * num, 16), *avail = take(6u + 2u * num, 2), *used = take(6u + 8u * num, 4);
		rc = rpx_ring_init(r, desc, avail, used, num, order, swap);
	}
	if (rc != 0)
		die(2, "ring", "init", rc, 0);
	rpx_ring_zero(r);
	r->event_idx = event_idx;
	r->indirect = true;
}

static void make_packed(struct rpx_packed_ring *r)
{
	uint8_t *desc = take(16u * num, 16), *by_driver = take(RPX_PACKED_EVENT_BYTES, 4);
	if (rpx_packed_ring_init(r, desc, by_driver, take(RPX_PACKED_EVENT_BYTES, 4), num,
				 device_order ? RPX_ORDER_DEVICE : RPX_ORDER_SMP, swap) != 0)
		die(2, "ring", "init", 0, 0);
	rpx_packed_ring_zero(r);
	r->event_idx = event_idx;
	r->indirect = true;
}

/* Of each kind of ring, both ends. */
struct ends {
	struct rpx_drv drv;
	struct rpx_dev dev;
	struct rpx_packed packed[2];
};

static void make_ends(struct ends *e)
{
	if (packed) {
		struct rpx_packed_ring r;
		make_packed(&r);
		rpx_packed_init(&e->packed[0], &r, calloc(num, sizeof(struct rpx_packed_buf)), false, RPX_PACKED_START);
		rpx_packed_init(&e->packed[1], &r, calloc(num, sizeof(struct rpx_packed_buf)), true, RPX_PACKED_START);
	} else {
		struct rpx_ring r;
		make_ring(&r);
		rpx_drv_init(&e->drv, &r, calloc(num, sizeof(struct rpx_drv_slot)));
		rpx_dev_init(&e->dev, &r, calloc(num, sizeof(uint32_t)), 0, 0);
	}
}

/* ------------------------------------------------------------------------------------------------- ring level ---- */

static struct ends ends;
static struct rpx_drv *const drv = &ends.drv;
static struct rpx_dev *const dev = &ends.dev;
static struct rpx_packed *const packed_drv = &ends.packed[DRIVER], *const packed_dev = &ends.packed[DEVICE];
static struct rpx_mem mem;
static struct rpx_region region;
static uint8_t *slots_base;

/* One operation that all queues have, on an end of the ring. */
#define RING_OP(who, op) \
	(packed ? rpx_packed_##op(&ends.packed[who]) : (who) == DRIVER ? rpx_drv_##op(drv) : rpx_dev_##op(dev))

static bool ring_pending(int who)
{
	return RING_OP(who, pending);
}

/* A chain in flight, as the driver remembers it. */
struct flight {
	uint32_t seq, out, in; /* number, bytes each way */
	uint32_t n_out, n_in;
	uint32_t in_lens[SEGS];
	bool busy;
};

static uint8_t *segment(uint32_t slot, uint32_t i)
{
	return slots_base + slot * SLOT + 16u * SEGS + i * SEG;
}

/* Stage chain `seq` in `slot`: 0, or RPX_E_FULL. Odd single buffers are to be written, even ones to be read. */
static int ring_send(struct rng *r, struct flight *f, uint32_t slot, uint32_t seq)
{
	uint32_t kind = rng_next(r) % 4, most = num < SEGS ? num : SEGS;
	uint32_t n = kind == 0 ? 1 : 1 + rng_next(r) % most;
	struct rpx_sg sg[SEGS];
	uint8_t bytes[SEGS * SEG];
	*f = (struct flight){ .seq = seq, .n_out = rng_next(r) % (n + 1), .busy = true };
	f->n_in = n - f->n_out;
	for (uint32_t i = 0; i < n; i++) {
		sg[i] = (struct rpx_sg){ addr_of(segment(slot, i)), 1 + rng_next(r) % SEG };
		*(i < f->n_out ? &f->out : &f->in) += sg[i].len;
		if (i >= f->n_out)
			f->in_lens[i - f->n_out] = sg[i].len;
	}
	if ((packed ? packed_drv->num_free : drv->num_free) < (kind == 1 ? 1 : n))
		return RPX_E_FULL;
	fill(bytes, f->out, DRIVER, seq);
	for (uint32_t i = 0, at = 0; i < f->n_out; at += sg[i++].len)
		memcpy(segment(slot, i), bytes + at, sg[i].len);
	uint8_t *table = slots_base + slot * SLOT;
	if (packed)
		return kind == 1 ? rpx_packed_add_indirect(packed_drv, (struct rpx_packed_desc *)(void *)table, addr_of(table), sg,
							   f->n_out, f->n_in, slot)
				 : rpx_packed_add(packed_drv, sg, f->n_out, f->n_in, slot);
	if (kind == 1)
		return rpx_drv_add_indirect(drv, (struct rpx_desc *)(void *)table, addr_of(table), sg, f->n_out, f->n_in, slot);
	if (n == 1)
		return rpx_drv_add1(drv, sg[0].addr, sg[0].len, f->n_in == 1, slot);
	return rpx_drv_add(drv, sg, f->n_out, f->n_in, slot);
}

/* What the device wrote: the first used.len of the writable bytes, however they are cut. */
static void ring_check(const struct flight *f, uint32_t slot, uint32_t len)
{
	uint8_t want[SEGS * SEG];
	if (len != (f->in + 1) / 2)
		die(1, "driver", "used.len", len, f->in);
	fill(want, len, DEVICE, f->seq);
	for (uint32_t i = 0, at = 0; i < f->n_in && at < len; at += f->in_lens[i++]) {
		uint32_t n = len - at < f->in_lens[i] ? len - at : f->in_lens[i];
		if (memcmp(segment(slot, f->n_out + i), want + at, n) != 0)
			die(1, "driver", "bytes differ", f->seq, at);
	}
}

static void *ring_driver(void *arg)
{
	struct rng r = { 88172645463325252u };
	struct flight *flights = calloc(num, sizeof *flights);
	uint32_t sent = 0, back = 0;
	(void)arg;
	while (back < count) {
		struct rpx_used used;
		uint32_t staged = 0, batch = 1 + rng_next(&r) % num;
		int rc = 0;
		for (uint32_t slot = 0; slot < num && staged < batch && sent < count; slot++) {
			struct flight f;
			if (flights[slot].busy)
				continue;
			if ((rc = ring_send(&r, &f, slot, sent)) != 0)
				break;
			flights[slot] = f;
			sent++;
			staged++;
		}
		if (rc != 0 && rc != RPX_E_FULL)
			die(1, "driver", rpx_error_text(rc), sent, back);
		if (RING_OP(DRIVER, publish))
			kick(DEVICE);
		RING_OP(DRIVER, mute);
		uint32_t got = 0;
		while ((rc = packed ? rpx_packed_get(packed_drv, &used) : rpx_drv_get(drv, &used)) == 1) {
			struct flight *f = &flights[used.cookie];
			if (!f->busy)
				die(1, "driver", "not in flight", used.cookie, back);
			ring_check(f, used.cookie, used.len);
			f->busy = false;
			back++;
			got++;
		}
		if (rc < 0)
			die(1, "driver", rpx_error_text(rc), sent, back);
		if (got == 0 && staged == 0 && !RING_OP(DRIVER, unmute))
			sleep_until_kicked(DRIVER, ring_pending, back);
	}
	free(flights);
	return NULL;
}

/* A buffer on its way through the device. */
struct taken {
	struct rpx_packed_chain list;
	struct rpx_chain chain;
	uint16_t id;
	bool single;
};

static int ring_pop(struct taken *t)
{
	int rc = packed ? rpx_packed_pop(packed_dev, &t->list) : rpx_dev_pop(dev, &t->id);
	t->single = false;
	if (packed)
		t->id = t->list.id;
	else if (rc == 1)
		rpx_chain_begin(&t->chain, dev, t->id, SEGS * SEG);
	return rc;
}

/* The next element; of a split ring, the short way where it is the only one. */
static int ring_next(struct taken *t, struct rpx_seg *seg, bool first)
{
	if (packed)
		return rpx_packed_next(&t->list, packed_dev, &mem, seg);
	if (first) {
		int rc = rpx_dev_single(dev, &mem, t->id, seg);
		t->single = rc == 1;
		if (rc != 0)
			return rc;
	}
	return t->single ? 0 : rpx_chain_next(&t->chain, dev, &mem, seg);
}

/* Walk the chain, check what can be read, write what can be written; the bytes written. */
static uint32_t ring_serve(struct taken *t, uint32_t seq)
{
	uint8_t in[SEGS * SEG], out[SEGS * SEG], want[SEGS * SEG];
	struct { uint8_t *p; uint32_t n; } writes[SEGS];
	struct rpx_seg seg;
	uint32_t n_in = 0, n_out = 0, n_writes = 0;
	int rc;
	for (bool first = true; (rc = ring_next(t, &seg, first)) == 1; first = false) {
		if (seg.write) {
			writes[n_writes].p = seg.ptr;
			writes[n_writes++].n = seg.len;
			n_out += seg.len;
		} else {
			memcpy(in + n_in, seg.ptr, seg.len);
			n_in += seg.len;
		}
	}
	if (rc < 0)
		die(1, "device", rpx_error_text(rc), t->id, seq);
	fill(want, n_in, DRIVER, seq);
	if (memcmp(in, want, n_in) != 0)
		die(1, "device", "bytes differ", seq, n_in);
	n_out = (n_out + 1) / 2; /* half of it, so that used.len says something */
	fill(out, n_out, DEVICE, seq);
	for (uint32_t i = 0, at = 0; i < n_writes && at < n_out; at += writes[i++].n)
		memcpy(writes[i].p, out + at, n_out - at < writes[i].n ? n_out - at : writes[i].n);
	return n_out;
}

static void *ring_device(void *arg)
{
	struct rng r = { 2463534242u };
	uint16_t *heads = calloc(num, sizeof *heads);
	uint32_t *lens = calloc(num, sizeof *lens);
	uint32_t seq = 0, held = 0;
	(void)arg;
	while (seq < count || held > 0) {
		uint32_t batch = 1 + rng_next(&r) % num, popped = 0;
		int rc = 0;
		struct taken t;
		RING_OP(DEVICE, mute);
		while (held < batch && (rc = ring_pop(&t)) == 1) {
			heads[held] = t.id;
			lens[held] = ring_serve(&t, seq++);
			held++;
			popped++;
		}
		if (rc < 0)
			die(1, "device", rpx_error_text(rc), seq, held);
		/* Back in any order; one may stay for the next round. */
		for (uint32_t keep = popped > 0 && seq < count ? rng_next(&r) % 2 : 0; held > keep; held--) {
			uint32_t i = rng_next(&r) % held;
			if ((packed ? rpx_packed_push(packed_dev, heads[i], lens[i]) : rpx_dev_push(dev, heads[i], lens[i])) != 0)
				die(1, "device", "push", heads[i], seq);
			heads[i] = heads[held - 1];
			lens[i] = lens[held - 1];
		}
		if (RING_OP(DEVICE, publish))
			kick(DRIVER);
		if (popped == 0 && held == 0 && seq < count && !RING_OP(DEVICE, unmute))
			sleep_until_kicked(DEVICE, ring_pending, seq);
	}
	free(heads);
	free(lens);
	return NULL;
}

static void ring_setup(void)
{
	map_shared(rpx_ring_bytes(num, 64) + 64 + (size_t)num * SLOT);
	make_ends(&ends);
	slots_base = take_end((size_t)num * SLOT);
	region = (struct rpx_region){ shared, ADDR, (uint64_t)(shared_end - shared), RPX_PERM_READ | RPX_PERM_WRITE };
	mem = (struct rpx_mem){ &region, 1 };
}

/* ------------------------------------------------------------------------------------------------ rpmsg level ---- */

/* One side of a link. */
struct side {
	struct rpx_rx rx;
	struct rpx_tx tx;
	uint8_t scratch[BUF];
	int who;
	uint32_t sent, received;
};

static struct side sides[2];

static bool link_pending(int who)
{
	struct side *s = &sides[who];
	return rpx_rx_pending(&s->rx) || (s->sent < count && rpx_tx_pending(&s->tx));
}

/* Stage message number s->sent, the short way or the long one. False: there is no buffer. */
static bool link_send_one(struct side *s, struct rng *r)
{
	uint8_t bytes[BUF];
	uint32_t len = 8 + rng_next(r) % (BUF - RPX_HDR - 7), sum;
	struct rpx_txbuf buf;
	fill(bytes + 8, len - 8, (uint32_t)s->who, rng_next(r));
	sum = checksum(bytes + 8, len - 8);
	memcpy(bytes, &s->sent, 4);
	memcpy(bytes + 4, &sum, 4);
	if (rng_next(r) % 2 == 0 && rpx_tx_turn(&s->tx, 1024 + s->sent, ~s->sent, bytes, len))
		return true;
	for (int rc; (rc = rpx_tx_get(&s->tx, &buf)) != RPX_TX_NONE;) {
		if (rc < 0)
			die(1, names[s->who], rpx_error_text(rc), s->sent, s->received);
		if (rng_next(r) % 8 == 0) { /* changed its mind */
			rpx_tx_unget(&s->tx, &buf);
			continue;
		}
		memcpy(buf.data, bytes, len);
		rc = rpx_tx_put(&s->tx, &buf, 1024 + s->sent, ~s->sent, len);
		if (rc != 0)
			die(1, names[s->who], rpx_error_text(rc), s->sent, s->received);
		return true;
	}
	return false;
}

static uint32_t link_send(struct side *s, struct rng *r)
{
	uint32_t staged = 0, batch = 1 + rng_next(r) % num;
	while (staged < batch && s->sent < count && link_send_one(s, r)) {
		s->sent++;
		staged++;
	}
	if (rpx_tx_publish(&s->tx))
		kick(!s->who);
	return staged;
}

static void link_check(struct side *s, const struct rpx_msg *msg)
{
	uint8_t bytes[BUF];
	uint32_t seq, sum;
	memcpy(bytes, msg->data, msg->len);
	memcpy(&seq, bytes, 4);
	memcpy(&sum, bytes + 4, 4);
	if (msg->len < 8 || seq != s->received || msg->src != 1024 + seq || msg->dst != ~seq)
		die(1, names[s->who], "out of sequence", seq, s->received);
	if (checksum(bytes + 8, msg->len - 8u) != sum)
		die(1, names[s->who], "checksum", seq, msg->len);
	s->received++;
}

static uint32_t link_receive_run(struct side *s, uint32_t max)
{
	struct rpx_rx_run run;
	struct rpx_msg msg;
	rpx_rx_run_begin(&run, &s->rx, max);
	while (rpx_rx_run_peek(&run, &msg)) {
		link_check(s, &msg);
		rpx_rx_run_turn(&run, &msg);
	}
	rpx_rx_run_end(&run, &s->rx);
	return run.n;
}

static uint32_t link_receive(struct side *s, struct rng *r)
{
	uint32_t tokens[16], held = 0, got = 0;
	struct rpx_msg msg;
	int rc = 0;
	rpx_rx_mute(&s->rx);
	while (got < 64) {
		if (rng_next(r) % 4 == 0)
			got += link_receive_run(s, rng_next(r) % 8);
		if ((rc = rpx_rx_next(&s->rx, &msg)) != RPX_RX_MESSAGE)
			break;
		link_check(s, &msg);
		got++;
		tokens[held++] = msg.token;
		while (held == 16 || (held > 0 && rng_next(r) % 4 != 0)) /* give back, or hold for a while */
			if (rpx_rx_done(&s->rx, tokens[--held]) != 0)
				die(1, names[s->who], "done", tokens[held], s->received);
		if (rng_next(r) % 4 == 0 && rpx_rx_publish(&s->rx))
			kick(!s->who);
	}
	if (rc != RPX_RX_EMPTY && rc != RPX_RX_MESSAGE)
		die(1, names[s->who], rc < 0 ? rpx_error_text(rc) : "dropped", rc, s->received);
	while (held > 0)
		if (rpx_rx_done(&s->rx, tokens[--held]) != 0)
			die(1, names[s->who], "done", tokens[held], 0);
	if (rpx_rx_publish(&s->rx))
		kick(!s->who);
	return got;
}

static void *link_side(void *arg)
{
	struct side *s = arg;
	struct rng r = { 88172645463325252u + (uint64_t)s->who };
	while (s->sent < count || s->received < count) {
		uint32_t did = link_receive(s, &r);
		rpx_tx_mute(&s->tx);
		did += link_send(s, &r);
		if (did > 0)
			continue;
		bool more = rpx_rx_unmute(&s->rx);
		/* Buffers matter only to who has something to send, and what was seen of them is all gone. */
		if (s->sent < count && rpx_tx_unmute(&s->tx))
			more = true;
		if (!more)
			sleep_until_kicked(s->who, link_pending, s->received);
	}
	return NULL;
}

/* vring 0 carries device to driver, vring 1 driver to device; the pools fill the rest, up to the guard page. */
static void link_setup(void)
{
	static struct ends vrings[2];
	struct side *a = &sides[DRIVER], *b = &sides[DEVICE];
	map_shared(2 * (rpx_ring_bytes(num, 64) + 64) + 2 * (size_t)num * BUF);
	make_ends(&vrings[0]);
	make_ends(&vrings[1]);
	uint8_t *pools = take_end(2 * (size_t)num * BUF);
	region = (struct rpx_region){ pools, addr_of(pools), 2 * (uint64_t)num * BUF, RPX_PERM_READ | RPX_PERM_WRITE };
	mem = (struct rpx_mem){ &region, 1 };
	for (int who = 0; who < 2; who++) {
		struct side *s = &sides[who];
		s->who = who;
		s->rx.swap = s->tx.swap = swap;
		s->rx.mem = s->tx.mem = &mem;
		s->rx.kind = s->tx.kind = device_order ? RPX_KIND_UNCACHED : RPX_KIND_CACHED;
		s->rx.scratch = s->scratch;
		s->rx.scratch_size = BUF;
		s->rx.whole = num > 2;
		s->tx.spare = calloc(2 * num, sizeof(uint32_t));
	}
	if (packed) {
		a->rx.packed = &vrings[0].packed[DRIVER];
		a->tx.packed = &vrings[1].packed[DRIVER];
		b->tx.packed = &vrings[0].packed[DEVICE];
		b->rx.packed = &vrings[1].packed[DEVICE];
	} else {
		a->rx.drv = &vrings[0].drv;
		a->tx.drv = &vrings[1].drv;
		b->tx.dev = &vrings[0].dev;
		b->rx.dev = &vrings[1].dev;
	}
	a->rx.pool = (struct rpx_pool){ pools, addr_of(pools), BUF, num };
	a->tx.pool = (struct rpx_pool){ pools + num * BUF, addr_of(pools) + num * BUF, BUF, num };
	rpx_tx_start_drv(&a->tx);
	if (rpx_rx_post(&a->rx) != 0)
		die(1, "driver", "post", 0, 0);
	rpx_rx_publish(&a->rx);
}

int main(int argc, char **argv)
{
	pthread_t threads[2];
	if (argc < 4 || argc > 5)
		return 2;
	const char *flags = argc == 5 ? argv[4] : "";
	bool is_ring = strcmp(argv[1], "ring") == 0;
	what = argv[1];
	num = (uint32_t)strtoul(argv[2], NULL, 10);
	count = (uint32_t)strtoul(argv[3], NULL, 10);
	event_idx = strchr(flags, 'e') != NULL;
	swap = strchr(flags, 's') != NULL;
	legacy = strchr(flags, 'l') != NULL;
	device_order = strchr(flags, 'd') != NULL;
	packed = strchr(flags, 'p') != NULL;
	if ((!is_ring && strcmp(argv[1], "rpmsg") != 0) || num == 0 || num > 4096 || strspn(flags, "esldp") != strlen(flags))
		return 2;
	if (is_ring)
		ring_setup();
	else
		link_setup();
	if (pthread_create(&threads[0], NULL, is_ring ? ring_driver : link_side, &sides[DRIVER]) != 0 ||
	    pthread_create(&threads[1], NULL, is_ring ? ring_device : link_side, &sides[DEVICE]) != 0)
		return 2;
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	printf("ok %s num=%u count=%u flags=%s sleeps=%u+%u\n", what, (unsigned)num, (unsigned)count, flags,
	       (unsigned)bells[DRIVER].sleeps, (unsigned)bells[DEVICE].sleeps);
	return 0;
}
