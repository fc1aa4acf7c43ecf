/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What does the ring cost, and what would another one bring to rpmsg? The same work over four:
 *
 *   split     csrc/rpx, whose ends do not know their role when they are compiled
 *   packed    csrc/rpx over a packed ring (VIRTIO 1.2, 2.8)
 *   bare      a split ring in bare code, the role compiled in: what it is better by is code
 *   in-order  the same with IN_ORDER (2.7.9) at its best: the avail ring is written once and never read, one used entry
 *             a batch
 *
 * Each message is a copy into a buffer with its rpmsg header, and a copy out; both ends check what the other one wrote
 * as csrc/rpx does, and decide at each publish whether to ring (nobody wants it: the other end is awake).
 *
 *   cc -O3 -std=gnu11 -Icsrc -pthread bench/limits/rings.c -o rings
 *   rings [REPEATS] [ONE TWO]       ns a message, min and median of REPEATS (9, at most 101) interleaved repeats, of ONE
 *                                    messages in one thread (400000) and TWO between two (200000)
 *   rings count RING WAY SIZE BATCH MESSAGES     just that, in one thread: for callgrind or perf stat
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rpx.h"

#define NUM 256u
#define BUF 512u
#define BATCH 64u
#define PA 0x80000000u
#define PIECE 0x10000u /* bytes between the rings */

/* ------------------------------------------------------------------------------------------------- memory ---- */

enum way { TO_DEVICE, TO_DRIVER };

static uint8_t *shared; /* for each way: rings, then buffers */
static struct rpx_region region;
static struct rpx_mem mem;

static uint8_t *rings_of(enum way way)
{
	return shared + way * PIECE;
}

static uint8_t *buffers_of(enum way way)
{
	return shared + 2 * PIECE + way * NUM * BUF;
}

static uint64_t addr_of(enum way way, uint32_t i)
{
	return PA + (uint64_t)(buffers_of(way) - shared) + i * BUF;
}

static volatile uint64_t rings; /* how often an end would have rung; volatile, so that the decision is made */

static inline void decide(bool ring)
{
	if (rpx_unlikely(ring))
		rings++;
}

static void die(const char *why)
{
	fprintf(stderr, "rings: %s\n", why);
	exit(1);
}

/* A header that was checked; false: drop it. */
static inline bool parse(const uint8_t *buf, uint32_t room, uint32_t *src, uint32_t *dst, uint32_t *len)
{
	const struct rpx_rpmsg_hdr *h = (const struct rpx_rpmsg_hdr *)(const void *)buf;
	if (room < RPX_HDR)
		return false;
	*src = rpx_get32(&h->src, false);
	*dst = rpx_get32(&h->dst, false);
	*len = rpx_get16(&h->len, false);
	return *len <= room - RPX_HDR;
}

static inline void compose(uint8_t *buf, const void *data, uint32_t size)
{
	static const struct rpx_tx little;
	rpx_copy_to(buf + RPX_HDR, data, size, RPX_KIND_CACHED);
	rpx_tx_header(&little, buf, 1, 2, size);
}

/* ------------------------------------------------------------------------------------------ as csrc/rpx has it ---- */

struct core_end {
	union { /* one of them */
		struct rpx_drv drv;
		struct rpx_dev dev;
		struct rpx_packed packed;
	};
	struct rpx_tx tx; /* one of them */
	struct rpx_rx rx;
	union {
		struct rpx_drv_slot slots[NUM];
		struct rpx_packed_buf bufs[NUM];
		uint32_t seen[NUM];
	};
	uint32_t spare[NUM];
} __attribute__((aligned(128)));

static struct core_end core[2][2]; /* way; driver, device */

static void core_start(enum way way, bool packed)
{
	struct core_end *drv = &core[way][0], *dev = &core[way][1];
	uint8_t *base = rings_of(way);
	memset(core[way], 0, sizeof(core[way]));
	if (packed) {
		struct rpx_packed_ring ring;
		rpx_packed_ring_init(&ring, base, base + 16 * NUM, base + 16 * NUM + 64, NUM, RPX_ORDER_SMP, false);
		rpx_packed_ring_zero(&ring);
		rpx_packed_init(&drv->packed, &ring, drv->bufs, false, RPX_PACKED_START);
		rpx_packed_init(&dev->packed, &ring, dev->bufs, true, RPX_PACKED_START);
		drv->tx.packed = drv->rx.packed = &drv->packed;
		dev->tx.packed = dev->rx.packed = &dev->packed;
	} else {
		struct rpx_ring ring;
		rpx_ring_init_legacy(&ring, base, NUM, 4096, RPX_ORDER_SMP, false);
		rpx_ring_zero(&ring);
		rpx_drv_init(&drv->drv, &ring, drv->slots);
		rpx_dev_init(&dev->dev, &ring, dev->seen, 0, 0);
		drv->tx.drv = drv->rx.drv = &drv->drv;
		dev->tx.dev = dev->rx.dev = &dev->dev;
	}
	dev->tx.mem = dev->rx.mem = &mem;
	drv->tx.spare = drv->spare;
	dev->tx.spare = dev->spare;
	drv->tx.pool = drv->rx.pool = (struct rpx_pool){ buffers_of(way), addr_of(way, 0), BUF, NUM };
	if (way == TO_DEVICE) {
		struct rpx_msg msg;
		rpx_tx_start_drv(&drv->tx);
		while (rpx_tx_send(&drv->tx, 1, 2, NULL, 0) == RPX_TX_BUFFER)
			; /* until every buffer was used once: later it is the oldest that is taken */
		rpx_tx_publish(&drv->tx);
		while (rpx_rx_peek(&dev->rx, &msg))
			rpx_rx_turn(&dev->rx, &msg);
		rpx_rx_publish(&dev->rx);
		rpx_tx_mute(&drv->tx);
		rpx_rx_mute(&dev->rx);
	} else {
		rpx_rx_post(&drv->rx);
		rpx_rx_publish(&drv->rx);
		rpx_rx_mute(&drv->rx);
		rpx_tx_mute(&dev->tx);
	}
}

static void split_start(enum way way)
{
	core_start(way, false);
}

static void packed_start(enum way way)
{
	core_start(way, true);
}

RPX_HOT uint32_t core_send(enum way way, const void *data, uint32_t size, uint32_t n)
{
	struct core_end *s = &core[way][way];
	uint32_t sent = 0;
	if (n > 1) {
		struct rpx_tx_run run;
		rpx_tx_run_begin(&run, &s->tx, n);
		while (rpx_tx_run_turn(&run, 1, 2, data, size))
			;
		rpx_tx_run_end(&run, &s->tx);
		sent = run.n;
	} else if (rpx_tx_send(&s->tx, 1, 2, data, size) == RPX_TX_BUFFER) {
		sent = 1;
	}
	decide(rpx_tx_publish(&s->tx));
	return sent;
}

RPX_HOT uint32_t core_recv(enum way way, uint8_t *out, uint32_t n)
{
	struct core_end *s = &core[way][!way];
	struct rpx_msg msg;
	uint32_t got;
	if (n > 1) {
		struct rpx_rx_run run;
		rpx_rx_run_begin(&run, &s->rx, n);
		while (rpx_rx_run_peek(&run, &msg)) {
			rpx_copy_from(out, msg.data, msg.len, RPX_KIND_CACHED);
			rpx_rx_run_turn(&run, &msg);
		}
		rpx_rx_run_end(&run, &s->rx);
		got = run.n;
	} else {
		got = rpx_rx_peek(&s->rx, &msg);
		if (got) {
			rpx_copy_from(out, msg.data, msg.len, RPX_KIND_CACHED);
			rpx_rx_turn(&s->rx, &msg);
		}
	}
	if (rpx_rx_broken(&s->rx))
		die("core: broken");
	decide(rpx_rx_publish(&s->rx));
	return got;
}

/* ------------------------------------------------------------------------------------------- split, bare ---- */

struct bare_end {
	struct rpx_ring ring;
	uint16_t next; /* the next message: to send, or to take */
	uint16_t seen; /* up to where the other end's index allows it */
	uint16_t published;
	uint32_t look;         /* device: counts the reads of avail.idx */
	uint32_t marks[NUM];   /* device: the look that a head was used in; driver: the length that is outstanding, or 0 */
	uint32_t lengths[NUM]; /* driver: what the descriptor says */
} __attribute__((aligned(128)));

static struct bare_end bare[2][2]; /* way; driver, device */

static void bare_start(enum way way)
{
	struct rpx_ring ring;
	rpx_ring_init_legacy(&ring, rings_of(way), NUM, 4096, RPX_ORDER_SMP, false);
	rpx_ring_zero(&ring);
	memset(bare[way], 0, sizeof(bare[way]));
	struct bare_end *drv = &bare[way][0], *dev = &bare[way][1];
	drv->ring = dev->ring = ring;
	dev->look = 1;
	for (uint32_t i = 0; i < NUM; i++) {
		rpx_drv_put_desc(&ring, i, addr_of(way, i), BUF, way == TO_DRIVER ? RPX_DESC_F_WRITE : 0u, 0);
		drv->lengths[i] = drv->marks[i] = BUF;
		/* To a device: as if all of them had been sent and used, so that the driver finds them in the used ring. */
		rpx_put16(rpx_ring_avail_entry(&ring, (uint16_t)i), (uint16_t)i, false);
		rpx_put32(&rpx_ring_used_entry(&ring, (uint16_t)i)->id, i, false);
	}
	rpx_put16_release(rpx_ring_w16(ring.avail, RPX_RING_IDX), drv->published = NUM, false, RPX_ORDER_SMP);
	if (way == TO_DEVICE) {
		rpx_put16_release(rpx_ring_w16(ring.used, RPX_RING_IDX), NUM, false, RPX_ORDER_SMP);
		dev->next = dev->seen = dev->published = NUM;
	}
	rpx_put16(rpx_ring_w16(ring.avail, RPX_RING_FLAGS), RPX_AVAIL_F_NO_INTERRUPT, false);
	rpx_put16(rpx_ring_w16(ring.used, RPX_RING_FLAGS), RPX_USED_F_NO_NOTIFY, false);
}

static inline void bare_drv_look(struct bare_end *q)
{
	uint16_t used = rpx_ring_used_idx(&q->ring);
	if (rpx_idx_diff(used, q->next) > rpx_idx_diff(q->published, q->next))
		die("bare: broken");
	q->seen = used;
}

/* The driver's next used buffer. */
static inline uint32_t bare_drv_take(struct bare_end *q, uint16_t next, uint32_t *len)
{
	const struct rpx_used_elem *e = rpx_ring_used_entry(&q->ring, next);
	uint32_t id = rpx_get32(&e->id, false);
	*len = rpx_get32(&e->len, false);
	if (id >= NUM || q->marks[id] == 0 || *len > q->marks[id])
		die("bare: broken");
	return id;
}

static inline void bare_drv_give(struct bare_end *q, uint16_t next, uint32_t id, uint32_t len)
{
	q->marks[id] = len;
	if (q->lengths[id] != len) {
		q->lengths[id] = len;
		rpx_put32(&rpx_ring_desc(&q->ring, id)->len, len, false);
	}
	rpx_put16(rpx_ring_avail_entry(&q->ring, next), (uint16_t)id, false); /* NUM further on is the same entry */
}

static inline void bare_drv_publish(struct bare_end *q)
{
	uint16_t idx = (uint16_t)(q->next + NUM);
	if (q->published == idx)
		return;
	rpx_put16_release(rpx_ring_w16(q->ring.avail, RPX_RING_IDX), idx, false, RPX_ORDER_SMP);
	q->published = idx;
	rpx_fence_full(RPX_ORDER_SMP);
	decide((rpx_get16(rpx_ring_w16(q->ring.used, RPX_RING_FLAGS), false) & RPX_USED_F_NO_NOTIFY) == 0);
}

static inline void bare_dev_look(struct bare_end *q)
{
	uint16_t idx = rpx_ring_avail_idx(&q->ring);
	if (rpx_idx_diff(idx, q->next) > NUM)
		die("bare: broken");
	q->seen = idx;
	q->look++;
}

static inline uint8_t *bare_dev_take(struct bare_end *q, uint16_t next, bool write, uint32_t *len)
{
	uint16_t head = rpx_get16(rpx_ring_avail_entry(&q->ring, next), false);
	if (head >= NUM || q->marks[head] >= q->look)
		die("bare: broken");
	const struct rpx_desc *d = rpx_ring_desc(&q->ring, head);
	*len = rpx_get32(&d->len, false);
	if ((rpx_get16(&d->flags, false) & 7u) != (write ? RPX_DESC_F_WRITE : 0u))
		die("bare: broken");
	uint8_t *buf = rpx_mem_at(&mem, rpx_get64(&d->addr, false), *len, write ? RPX_PERM_WRITE : RPX_PERM_READ);
	if (buf == NULL || ((uintptr_t)buf & 3u) != 0)
		die("bare: broken");
	q->marks[head] = q->look;
	rpx_put32(&rpx_ring_used_entry(&q->ring, next)->id, head, false);
	return buf;
}

static inline void bare_dev_publish(struct bare_end *q)
{
	if (q->published == q->next)
		return;
	rpx_put16_release(rpx_ring_w16(q->ring.used, RPX_RING_IDX), q->next, false, RPX_ORDER_SMP);
	q->published = q->next;
	rpx_fence_full(RPX_ORDER_SMP);
	decide((rpx_get16(rpx_ring_w16(q->ring.avail, RPX_RING_FLAGS), false) & RPX_AVAIL_F_NO_INTERRUPT) == 0);
}

RPX_HOT uint32_t bare_send(enum way way, const void *data, uint32_t size, uint32_t n)
{
	struct bare_end *q = &bare[way][way];
	uint32_t sent = 0, len;
	if (q->next == q->seen) {
		if (way == TO_DEVICE)
			bare_drv_look(q);
		else
			bare_dev_look(q);
	}
	uint16_t next = q->next, seen = q->seen;
	for (; sent < n && next != seen; sent++, next++) {
		if (way == TO_DEVICE) {
			uint32_t id = bare_drv_take(q, next, &len);
			compose(buffers_of(way) + id * BUF, data, size);
			bare_drv_give(q, next, id, RPX_HDR + size);
		} else {
			uint8_t *buf = bare_dev_take(q, next, true, &len);
			if (len < RPX_HDR + size)
				die("bare: short");
			compose(buf, data, size);
			rpx_put32(&rpx_ring_used_entry(&q->ring, next)->len, RPX_HDR + size, false);
		}
	}
	q->next = next;
	if (way == TO_DEVICE)
		bare_drv_publish(q);
	else
		bare_dev_publish(q);
	return sent;
}

RPX_HOT uint32_t bare_recv(enum way way, uint8_t *out, uint32_t n)
{
	struct bare_end *q = &bare[way][!way];
	uint32_t got = 0, src, dst, len, room, id = 0;
	if (q->next == q->seen) {
		if (way == TO_DEVICE)
			bare_dev_look(q);
		else
			bare_drv_look(q);
	}
	uint16_t next = q->next, seen = q->seen;
	for (; got < n && next != seen; got++, next++) {
		const uint8_t *buf;
		if (way == TO_DEVICE) {
			buf = bare_dev_take(q, next, false, &room);
		} else {
			id = bare_drv_take(q, next, &room);
			buf = buffers_of(way) + id * BUF;
		}
		if (!parse(buf, room, &src, &dst, &len))
			die("bare: header");
		rpx_copy_from(out, buf + RPX_HDR, len, RPX_KIND_CACHED);
		if (way == TO_DEVICE)
			rpx_put32(&rpx_ring_used_entry(&q->ring, next)->len, 0, false);
		else
			bare_drv_give(q, next, id, BUF);
	}
	q->next = next;
	if (way == TO_DEVICE)
		bare_dev_publish(q);
	else
		bare_drv_publish(q);
	return got;
}

/* --------------------------------------------------------------------------------------- split with IN_ORDER ---- */

/*
 * Buffer i is descriptor i is entry i: what both ends know of the order replaces the driver's list of what is
 * outstanding, the device's of what it holds, and each entry of the avail ring.
 */
struct in_order_end {
	struct rpx_ring ring;
	uint16_t next; /* the next message: to send, or to take */
	uint16_t seen; /* up to where it may go on */
	uint16_t index; /* the other end's, as last read */
	uint16_t published;
	uint32_t limit[NUM]; /* driver: the most that used.len may say */
} __attribute__((aligned(128)));

static struct in_order_end in_order[2][2]; /* way; driver, device */

static void in_order_start(enum way way)
{
	struct rpx_ring ring;
	rpx_ring_init_legacy(&ring, rings_of(way), NUM, 4096, RPX_ORDER_SMP, false);
	rpx_ring_zero(&ring);
	memset(in_order[way], 0, sizeof(in_order[way]));
	struct in_order_end *drv = &in_order[way][0], *dev = &in_order[way][1];
	drv->ring = dev->ring = ring;
	for (uint32_t i = 0; i < NUM; i++) {
		rpx_drv_put_desc(&ring, i, addr_of(way, i), BUF, way == TO_DRIVER ? RPX_DESC_F_WRITE : 0u, 0);
		rpx_put16(rpx_ring_avail_entry(&ring, (uint16_t)i), (uint16_t)i, false);
		drv->limit[i] = BUF;
	}
	if (way == TO_DEVICE)
		drv->seen = NUM; /* it may send so many */
	else
		rpx_put16_release(rpx_ring_w16(ring.avail, RPX_RING_IDX), drv->published = NUM, false, RPX_ORDER_SMP);
	rpx_put16(rpx_ring_w16(ring.avail, RPX_RING_FLAGS), RPX_AVAIL_F_NO_INTERRUPT, false);
	rpx_put16(rpx_ring_w16(ring.used, RPX_RING_FLAGS), RPX_USED_F_NO_NOTIFY, false);
}

/* The next batch that the device has used: one entry, where the batch begins, names its last buffer. False: none. */
static inline bool in_order_drv_look(struct in_order_end *q, uint16_t ahead)
{
	uint16_t taken = (uint16_t)(q->seen - ahead);
	if (q->index == taken) {
		uint16_t used = rpx_ring_used_idx(&q->ring);
		if (rpx_idx_diff(used, taken) > rpx_idx_diff(q->published, taken))
			die("in-order: broken");
		if (used == taken)
			return false;
		q->index = used;
	}
	const struct rpx_used_elem *e = rpx_ring_used_entry(&q->ring, taken);
	uint32_t id = rpx_get32(&e->id, false), len = rpx_get32(&e->len, false);
	uint16_t n = (uint16_t)(((id - taken) & q->ring.mask) + 1u);
	if (id >= NUM || n > rpx_idx_diff(q->index, taken) || len > q->limit[id])
		die("in-order: broken");
	q->seen = (uint16_t)(q->seen + n);
	return true;
}

static inline void in_order_drv_publish(struct in_order_end *q, uint16_t idx)
{
	if (q->published == idx)
		return;
	rpx_put16_release(rpx_ring_w16(q->ring.avail, RPX_RING_IDX), idx, false, RPX_ORDER_SMP);
	q->published = idx;
	rpx_fence_full(RPX_ORDER_SMP);
	decide((rpx_get16(rpx_ring_w16(q->ring.used, RPX_RING_FLAGS), false) & RPX_USED_F_NO_NOTIFY) == 0);
}

static inline void in_order_dev_look(struct in_order_end *q)
{
	uint16_t idx = rpx_ring_avail_idx(&q->ring);
	if (rpx_idx_diff(idx, q->published) > NUM)
		die("in-order: broken");
	q->seen = idx;
}

static inline void in_order_dev_publish(struct in_order_end *q, uint32_t len)
{
	if (q->published == q->next)
		return;
	struct rpx_used_elem *e = rpx_ring_used_entry(&q->ring, q->published);
	rpx_put32(&e->id, (q->next - 1u) & q->ring.mask, false);
	rpx_put32(&e->len, len, false);
	rpx_put16_release(rpx_ring_w16(q->ring.used, RPX_RING_IDX), q->next, false, RPX_ORDER_SMP);
	q->published = q->next;
	rpx_fence_full(RPX_ORDER_SMP);
	decide((rpx_get16(rpx_ring_w16(q->ring.avail, RPX_RING_FLAGS), false) & RPX_AVAIL_F_NO_INTERRUPT) == 0);
}

static inline uint8_t *in_order_dev_buffer(struct in_order_end *q, bool write, uint32_t *len)
{
	const struct rpx_desc *d = rpx_ring_desc(&q->ring, q->next & q->ring.mask);
	uint16_t flags = rpx_get16(&d->flags, false);
	*len = rpx_get32(&d->len, false);
	if ((flags & 7u) != (write ? RPX_DESC_F_WRITE : 0u))
		die("in-order: broken");
	uint8_t *buf = rpx_mem_at(&mem, rpx_get64(&d->addr, false), *len, write ? RPX_PERM_WRITE : RPX_PERM_READ);
	if (buf == NULL || ((uintptr_t)buf & 3u) != 0)
		die("in-order: broken");
	return buf;
}

RPX_HOT uint32_t in_order_send(enum way way, const void *data, uint32_t size, uint32_t n)
{
	struct in_order_end *q = &in_order[way][way];
	uint32_t sent = 0, len;
	if (way == TO_DEVICE) {
		while (rpx_idx_diff(q->seen, q->next) < n && in_order_drv_look(q, NUM))
			;
		uint16_t next = q->next, seen = q->seen;
		for (; sent < n && next != seen; sent++, next++) {
			uint32_t i = next & (NUM - 1u);
			compose(buffers_of(way) + i * BUF, data, size);
			if (q->limit[i] != RPX_HDR + size) {
				q->limit[i] = RPX_HDR + size;
				rpx_put32(&rpx_ring_desc(&q->ring, i)->len, RPX_HDR + size, false);
			}
		}
		q->next = next;
		in_order_drv_publish(q, next);
	} else {
		if (q->next == q->seen)
			in_order_dev_look(q);
		for (; sent < n && q->next != q->seen; sent++, q->next++) {
			uint8_t *buf = in_order_dev_buffer(q, true, &len);
			if (len < RPX_HDR + size)
				die("in-order: short");
			compose(buf, data, size);
		}
		in_order_dev_publish(q, RPX_HDR + size);
	}
	return sent;
}

RPX_HOT uint32_t in_order_recv(enum way way, uint8_t *out, uint32_t n)
{
	struct in_order_end *q = &in_order[way][!way];
	uint32_t got = 0, src, dst, len, room;
	if (way == TO_DEVICE) {
		if (q->next == q->seen)
			in_order_dev_look(q);
		for (; got < n && q->next != q->seen; got++, q->next++) {
			uint8_t *buf = in_order_dev_buffer(q, false, &room);
			if (!parse(buf, room, &src, &dst, &len))
				die("in-order: header");
			rpx_copy_from(out, buf + RPX_HDR, len, RPX_KIND_CACHED);
		}
		in_order_dev_publish(q, 0);
	} else {
		while (rpx_idx_diff(q->seen, q->next) < n && in_order_drv_look(q, 0))
			;
		uint16_t next = q->next, seen = q->seen;
		for (; got < n && next != seen; got++, next++) {
			const uint8_t *buf = buffers_of(way) + (next & (NUM - 1u)) * BUF;
			if (!parse(buf, BUF, &src, &dst, &len)) /* only the last one's length was said */
				die("in-order: header");
			rpx_copy_from(out, buf + RPX_HDR, len, RPX_KIND_CACHED);
		}
		q->next = next;
		in_order_drv_publish(q, (uint16_t)(next + NUM));
	}
	return got;
}

/* ---------------------------------------------------------------------------------------------------- work ---- */

struct cell {
	const char *ring;
	void (*start)(enum way);
	void (*one_thread)(enum way, uint32_t size, uint32_t batch, uint32_t count);
	void (*sender)(enum way, uint32_t size, uint32_t batch, uint32_t count);
	void (*receiver)(enum way, uint32_t size, uint32_t batch, uint32_t count);
	void (*asker)(uint32_t size, uint32_t count);
	void (*answerer)(uint32_t size, uint32_t count);
};

static uint8_t payload[BUF] __attribute__((aligned(64))), taken[2][BUF] __attribute__((aligned(64)));

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#endif
}

static inline void check(const uint8_t *got, uint32_t size)
{
	if (got[0] != payload[0] || got[size - 1] != payload[size - 1])
		die("wrong data");
}

/* The direction and whether it is a batch are constants in each copy, as they are to somebody who knows his role. */
#define CALL(ring, what, way, batch, a, ...) \
	((way) == TO_DEVICE ? (batch) == 1 ? ring##_##what(TO_DEVICE, a, ##__VA_ARGS__, 1) \
					   : ring##_##what(TO_DEVICE, a, ##__VA_ARGS__, batch) \
			    : (batch) == 1 ? ring##_##what(TO_DRIVER, a, ##__VA_ARGS__, 1) \
					   : ring##_##what(TO_DRIVER, a, ##__VA_ARGS__, batch))

#define WORK(ring) \
	static __attribute__((noinline)) void ring##_one_thread(enum way way, uint32_t size, uint32_t batch, uint32_t count) \
	{ \
		for (uint32_t done = 0; done < count; done += batch) { \
			uint32_t sent = CALL(ring, send, way, batch, payload, size); \
			uint32_t got = CALL(ring, recv, way, batch, taken[0]); \
			if (sent != batch || got != batch) \
				die(#ring ": not all of them"); \
		} \
		check(taken[0], size); \
	} \
	static __attribute__((noinline)) void ring##_sender(enum way way, uint32_t size, uint32_t batch, uint32_t count) \
	{ \
		for (uint32_t done = 0, n; done < count; done += n) { \
			n = CALL(ring, send, way, batch, payload, size); \
			if (n == 0) \
				relax(); \
		} \
	} \
	static __attribute__((noinline)) void ring##_receiver(enum way way, uint32_t size, uint32_t batch, uint32_t count) \
	{ \
		for (uint32_t done = 0, n; done < count; done += n) { \
			n = CALL(ring, recv, way, batch, taken[0]); \
			if (n == 0) \
				relax(); \
		} \
		check(taken[0], size); \
	} \
	static __attribute__((noinline)) void ring##_asker(uint32_t size, uint32_t count) \
	{ \
		for (uint32_t done = 0; done < count; done++) { \
			while (!ring##_send(TO_DEVICE, payload, size, 1)) \
				relax(); \
			while (!ring##_recv(TO_DRIVER, taken[0], 1)) \
				relax(); \
		} \
		check(taken[0], size); \
	} \
	static __attribute__((noinline)) void ring##_answerer(uint32_t size, uint32_t count) \
	{ \
		for (uint32_t done = 0; done < count; done++) { \
			while (!ring##_recv(TO_DEVICE, taken[1], 1)) \
				relax(); \
			while (!ring##_send(TO_DRIVER, taken[1], size, 1)) \
				relax(); \
		} \
	}

WORK(core)
WORK(bare)
WORK(in_order)

#define CELL(name, start, ring) \
	{ name, start##_start, ring##_one_thread, ring##_sender, ring##_receiver, ring##_asker, ring##_answerer }

static const struct cell cells[] = {
	CELL("split", split, core),
	CELL("packed", packed, core),
	CELL("bare", bare, bare),
	CELL("in-order", in_order, in_order),
};
#define CELLS (sizeof(cells) / sizeof(cells[0]))

/* ------------------------------------------------------------------------------------------------- measuring ---- */

static double now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void pin(size_t cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set) != 0)
		die("cannot pin a thread: two CPUs are needed");
}

/* Begin anew, and warm up. */
static void begin(const struct cell *c, enum way way, uint32_t size)
{
	c->start(way);
	c->one_thread(way, size, 1, NUM);
	c->one_thread(way, size, BATCH, 4 * NUM);
}

enum kind { ONE_THREAD, STREAM, PING_PONG, LINE };

struct job {
	const struct cell *cell;
	enum kind kind;
	enum way way;
	uint32_t size, batch, count;
};

static uint32_t gate;                                 /* threads that are there */
static uint32_t line __attribute__((aligned(128)));    /* a cache line that goes to and fro */

static void meet(void)
{
	__atomic_add_fetch(&gate, 1, __ATOMIC_ACQ_REL);
	while (__atomic_load_n(&gate, __ATOMIC_ACQUIRE) < 2)
		relax();
}

static void line_side(uint32_t odd, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		while ((__atomic_load_n(&line, __ATOMIC_ACQUIRE) & 1u) != odd)
			relax();
		__atomic_store_n(&line, 2 * i + odd + 1, __ATOMIC_RELEASE);
	}
}

static void *other_thread(void *arg)
{
	const struct job *j = (const struct job *)arg;
	pin(1);
	meet();
	if (j->kind == STREAM)
		j->cell->sender(j->way, j->size, j->batch, j->count);
	else if (j->kind == PING_PONG)
		j->cell->answerer(j->size, j->count);
	else
		line_side(1, j->count);
	return NULL;
}

static double run(const struct job *j)
{
	pthread_t thread;
	double start;
	if (j->cell != NULL) {
		begin(j->cell, TO_DEVICE, j->size);
		begin(j->cell, TO_DRIVER, j->size);
	}
	if (j->kind == ONE_THREAD) {
		start = now_ns();
		j->cell->one_thread(j->way, j->size, j->batch, j->count);
		return (now_ns() - start) / j->count;
	}
	gate = line = 0;
	if (pthread_create(&thread, NULL, other_thread, (void *)(uintptr_t)j) != 0)
		die("no thread");
	meet();
	start = now_ns();
	if (j->kind == STREAM)
		j->cell->receiver(j->way, j->size, j->batch, j->count);
	else if (j->kind == PING_PONG)
		j->cell->asker(j->size, j->count);
	else
		line_side(0, j->count);
	double took = (now_ns() - start) / j->count;
	pthread_join(thread, NULL);
	return took;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

#define MAX_REPEATS 101

static void report(const char *what, struct job *jobs, uint32_t n, uint32_t repeats)
{
	static double took[CELLS][MAX_REPEATS];
	for (uint32_t k = 0; k < repeats; k++) {
		for (uint32_t i = 0; i < n; i++)
			took[i][k] = run(&jobs[i]);
	}
	printf("%-40s", what);
	for (uint32_t i = 0; i < n; i++) {
		qsort(took[i], repeats, sizeof(double), by_value);
		printf("  %7.1f %7.1f", took[i][0], took[i][repeats / 2]);
		if (i > 0)
			printf(" %+4.0f%%", 100 * (took[i][0] / took[0][0] - 1));
	}
	printf("\n");
	fflush(stdout);
}

static void compare(const char *what, struct job job, uint32_t repeats)
{
	struct job jobs[CELLS];
	char name[64];
	for (uint32_t i = 0; i < CELLS; i++) {
		jobs[i] = job;
		jobs[i].cell = &cells[i];
	}
	snprintf(name, sizeof(name), "%s, %u B%s", what, job.size, job.batch > 1 ? ", 64 at a time" : "");
	report(name, jobs, CELLS, repeats);
}

static void count_one(char **argv)
{
	enum way way = strcmp(argv[1], "to-device") == 0 ? TO_DEVICE : TO_DRIVER;
	uint32_t size = (uint32_t)atoi(argv[2]), batch = (uint32_t)atoi(argv[3]), count = (uint32_t)atoi(argv[4]);
	for (uint32_t i = 0; i < CELLS; i++) {
		if (strcmp(argv[0], cells[i].ring) == 0) {
			begin(&cells[i], way, size);
			cells[i].one_thread(way, size, batch, count);
			return;
		}
	}
	die("no such ring");
}

int main(int argc, char **argv)
{
	size_t size = 2 * PIECE + 2 * NUM * BUF;
	shared = aligned_alloc(4096, size);
	if (shared == NULL)
		die("no memory");
	memset(shared, 0, size);
	memset(payload, 0x5a, sizeof(payload));
	region = (struct rpx_region){ shared + 2 * PIECE, PA + 2 * PIECE, 2 * NUM * BUF, RPX_PERM_READ | RPX_PERM_WRITE };
	mem = (struct rpx_mem){ &region, 1 };
	if (argc == 7 && strcmp(argv[1], "count") == 0) {
		count_one(argv + 2);
		return 0;
	}
	uint32_t repeats = argc > 1 ? (uint32_t)atoi(argv[1]) : 9;
	uint32_t one = argc > 3 ? (uint32_t)atoi(argv[2]) : 400000, two = argc > 3 ? (uint32_t)atoi(argv[3]) : 200000;
	if (repeats < 1 || repeats > MAX_REPEATS || one < BATCH || two < BATCH)
		die("REPEATS are 1 to 101, messages 64 and more");
	one -= one % BATCH;
	two -= two % BATCH;
	pin(0);
	struct job line_job = { NULL, LINE, 0, 0, 1, two };
	printf("%-40s  %-15s", "ns: min, median, and the min to split's", "split");
	for (uint32_t i = 1; i < CELLS; i++)
		printf("  %-21s", cells[i].ring);
	printf("\n");
	static const uint32_t sizes[] = { 64, 496 }, batches[] = { 1, BATCH };
	for (uint32_t k = 0; k < 8; k++) {
		enum way way = k & 4 ? TO_DRIVER : TO_DEVICE;
		struct job job = { NULL, ONE_THREAD, way, sizes[k & 1], batches[k >> 1 & 1], one };
		compare(way == TO_DEVICE ? "to device" : "to driver", job, repeats);
	}
	report("a cache line there and back", &line_job, 1, repeats);
	for (uint32_t k = 0; k < 8; k++) {
		enum way way = k & 4 ? TO_DRIVER : TO_DEVICE;
		struct job job = { NULL, STREAM, way, sizes[k & 1], batches[k >> 1 & 1], two };
		compare(way == TO_DEVICE ? "2 threads, to device" : "2 threads, to driver", job, repeats);
	}
	for (uint32_t k = 0; k < 2; k++) {
		struct job job = { NULL, PING_PONG, TO_DEVICE, sizes[k], 1, two / 4 };
		compare("2 threads, there and back", job, repeats);
	}
	report("a cache line there and back", &line_job, 1, repeats);
	return rings != 0;
}
