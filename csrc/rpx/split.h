/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The split virtqueue (VIRTIO 1.2, 2.7), both roles. Nothing here waits, notifies or allocates.
 *
 *   driver                                      device
 *   rpx_drv_init(&q, &ring, slots)              rpx_dev_init(&q, &ring, seen)
 *   rpx_drv_add1(&q, addr, len, false, cookie)  rpx_dev_pop(&q, &head) == 1
 *   if (rpx_drv_publish(&q)) kick();            rpx_dev_single(&q, &mem, head, &seg)
 *   rpx_drv_get(&q, &used) == 1                 rpx_dev_push(&q, head, written)
 *                                               if (rpx_dev_publish(&q)) kick();
 *
 * Own indices, the free list and what is outstanding are private memory, only ever written out. Each field the peer
 * writes is read once; the value read is checked, and that value is used. A broken rule is returned as its error
 * value, and from then on by every call: the queue is broken until it is initialised again.
 *
 * Not thread-safe: one thread at a time per queue. Memory order stands at each access, with the rule it serves.
 */
#ifndef RPX_SPLIT_H
#define RPX_SPLIT_H

#include "mem.h"
#include "wire.h"

/* Where the three parts of a ring lie and how its fields are read. Private memory. */
struct rpx_ring {
	uint8_t *desc;
	uint8_t *avail;
	uint8_t *used;
	uint32_t mask; /* num - 1 */
	uint16_t num;
	uint8_t order;  /* enum rpx_order */
	bool swap;      /* fields are in the other byte order */
	bool event_idx; /* VIRTIO_F_EVENT_IDX was negotiated */
	bool indirect;  /* VIRTIO_F_INDIRECT_DESC was negotiated */
};

/* Bytes of a legacy ring: descriptors and avail, padded to align, then used (2.7.2). num and align are checked. */
static inline uint32_t rpx_ring_used_offset(uint32_t num, uint32_t align)
{
	return (16u * num + 6u + 2u * num + align - 1u) & ~(align - 1u);
}

static inline uint32_t rpx_ring_bytes(uint32_t num, uint32_t align)
{
	return rpx_ring_used_offset(num, align) + 6u + 8u * num;
}

/*
 * A ring in three parts. RPX_E_INVAL where num is no power of two up to 32768 or a part is not aligned to 16, 2
 * and 4 (2.7.1-1). The caller has checked that 16 * num, 6 + 2 * num and 6 + 8 * num bytes are there.
 */
static inline int rpx_ring_init(struct rpx_ring *r, uint8_t *desc, uint8_t *avail, uint8_t *used, uint32_t num,
				enum rpx_order order, bool swap)
{
	if (num == 0 || num > RPX_QUEUE_MAX || (num & (num - 1u)) != 0)
		return RPX_E_INVAL;
	if (((uintptr_t)desc & 15u) != 0 || ((uintptr_t)avail & 1u) != 0 || ((uintptr_t)used & 3u) != 0)
		return RPX_E_INVAL;
	r->desc = desc;
	r->avail = avail;
	r->used = used;
	r->num = (uint16_t)num;
	r->mask = num - 1u;
	r->order = (uint8_t)order;
	r->swap = swap;
	r->event_idx = false;
	r->indirect = false;
	return 0;
}

/* A legacy ring: one piece of rpx_ring_bytes(num, align) bytes at base, align a power of two >= 4 (2.7.2-2). */
static inline int rpx_ring_init_legacy(struct rpx_ring *r, uint8_t *base, uint32_t num, uint32_t align,
				       enum rpx_order order, bool swap)
{
	if (num == 0 || num > RPX_QUEUE_MAX || align < 4u || (align & (align - 1u)) != 0 || align > (1u << 30))
		return RPX_E_INVAL;
	return rpx_ring_init(r, base, base + 16u * num, base + rpx_ring_used_offset(num, align), num, order, swap);
}

/* The driver, before the device may look: everything zero, used.flags among it (2.7.10.1-1). */
static inline void rpx_ring_zero(const struct rpx_ring *r)
{
	rpx_zero(r->desc, 16u * (size_t)r->num);
	rpx_zero(r->avail, 6u + 2u * (size_t)r->num);
	rpx_zero(r->used, 6u + 8u * (size_t)r->num);
}

static inline struct rpx_desc *rpx_ring_desc(const struct rpx_ring *r, uint32_t i)
{
	return (struct rpx_desc *)(void *)(r->desc + 16u * (size_t)i);
}

static inline struct rpx_w16 *rpx_ring_w16(uint8_t *part, uint32_t offset)
{
	return (struct rpx_w16 *)(void *)(part + offset);
}

static inline struct rpx_w16 *rpx_ring_avail_entry(const struct rpx_ring *r, uint16_t idx)
{
	return rpx_ring_w16(r->avail, RPX_RING_ENTRIES + 2u * (idx & r->mask));
}

static inline struct rpx_used_elem *rpx_ring_used_entry(const struct rpx_ring *r, uint16_t idx)
{
	return (struct rpx_used_elem *)(void *)(r->used + RPX_RING_ENTRIES + 8u * (size_t)(idx & r->mask));
}

/* Both ends write their own notification threshold behind their own ring's entries (2.7.7, 2.7.10). */
static inline struct rpx_w16 *rpx_ring_used_event(const struct rpx_ring *r)
{
	return rpx_ring_w16(r->avail, RPX_RING_ENTRIES + 2u * (uint32_t)r->num);
}

static inline struct rpx_w16 *rpx_ring_avail_event(const struct rpx_ring *r)
{
	return rpx_ring_w16(r->used, RPX_RING_ENTRIES + 8u * (uint32_t)r->num);
}

static inline uint16_t rpx_ring_avail_idx(const struct rpx_ring *r)
{
	return rpx_get16_acquire(rpx_ring_w16(r->avail, RPX_RING_IDX), r->swap, (enum rpx_order)r->order);
}

static inline uint16_t rpx_ring_used_idx(const struct rpx_ring *r)
{
	return rpx_get16_acquire(rpx_ring_w16(r->used, RPX_RING_IDX), r->swap, (enum rpx_order)r->order);
}

/* ------------------------------------------------------------------------------------------------- driver ---- */

struct rpx_drv_slot {
	uint64_t seq;    /* number of the chain in flight that starts here, since rpx_drv_init; or RPX_IDLE */
	uint32_t limit;  /* the most that used.len may say for the chain that starts here */
	uint32_t cookie; /* the caller's, given back by rpx_drv_get */
	uint16_t length; /* descriptors in the chain that starts here */
	uint16_t next;   /* next of the chain, or of the free list */
};

#define RPX_IDLE UINT64_MAX

struct rpx_drv {
	struct rpx_ring ring;
	struct rpx_drv_slot *slots; /* [num] */
	int broken;                 /* 0, or the error that broke the queue */
	uint64_t seq;               /* chains added; 64 bits, so that a chain the device keeps for ever stays old */
	uint64_t seq_pub;           /* of them published */
	uint64_t seq_seen;          /* of them published when used.idx was last read: only these can be used by then */
	uint16_t avail_idx;         /* next entry to fill; those behind avail_pub are not published yet */
	uint16_t avail_pub;
	uint16_t last_used;
	uint16_t used_seen; /* used.idx as last read and checked */
	uint16_t free_head;
	uint16_t num_free;
	bool muted;
};

/* Heads the device has, staged ones included. */
static inline uint16_t rpx_drv_in_flight(const struct rpx_drv *q)
{
	return rpx_idx_diff(q->avail_idx, q->last_used);
}

static inline int rpx_drv_broken(const struct rpx_drv *q)
{
	return q->broken;
}

/* Has the device used something that was not looked at yet? Reads one index. */
static inline bool rpx_drv_pending(const struct rpx_drv *q)
{
	return rpx_ring_used_idx(&q->ring) != q->last_used;
}

/* One buffer of a chain to add. */
struct rpx_sg {
	uint64_t addr;
	uint32_t len;
};

static inline int rpx_drv_fail(struct rpx_drv *q, int error)
{
	q->broken = error;
	return error;
}

/* Take over a zeroed ring; `slots` has num entries. Touches no shared memory; notifications are on, as zero means. */
static inline void rpx_drv_init(struct rpx_drv *q, const struct rpx_ring *ring, struct rpx_drv_slot *slots)
{
	RPX_ASSIGN(&q->ring, ring);
	q->slots = slots;
	q->broken = 0;
	q->seq = q->seq_pub = q->seq_seen = 0;
	q->avail_idx = q->avail_pub = q->last_used = q->used_seen = 0;
	q->free_head = 0;
	q->num_free = ring->num;
	q->muted = false;
	for (uint32_t i = 0; i < ring->num; i++) {
		slots[i].seq = RPX_IDLE;
		slots[i].next = (uint16_t)(i + 1u);
	}
}

static inline void rpx_drv_put_desc(const struct rpx_ring *r, uint32_t i, uint64_t addr, uint32_t len, uint32_t flags,
				    uint16_t next)
{
	struct rpx_desc *d = rpx_ring_desc(r, i);
	rpx_put64(&d->addr, addr, r->swap);
	rpx_put32(&d->len, len, r->swap);
	rpx_put16(&d->flags, (uint16_t)flags, r->swap);
	rpx_put16(&d->next, next, r->swap);
}

static inline void rpx_drv_stage(struct rpx_drv *q, uint16_t head)
{
	rpx_put16(rpx_ring_avail_entry(&q->ring, q->avail_idx), head, q->ring.swap);
	q->slots[head].seq = q->seq++;
	q->avail_idx++;
}

/*
 * A driver that keeps descriptor and buffer together for good: rpx_drv_bind once for each, then rpx_drv_post and
 * rpx_drv_used. Such a queue uses no free list, so never mix these with rpx_drv_add and rpx_drv_get.
 * RPX_E_INVAL where `id` is out of range.
 */
static inline int rpx_drv_bind(struct rpx_drv *q, uint32_t id, uint64_t addr, bool write)
{
	if (id >= q->ring.num)
		return RPX_E_INVAL;
	rpx_drv_put_desc(&q->ring, id, addr, 0, write ? RPX_DESC_F_WRITE : 0u, 0);
	q->slots[id].limit = 0;
	q->slots[id].length = 1;
	return 0;
}

/* Stage the first `len` bytes of a bound buffer. The descriptor has the length already where that is as it was. */
RPX_HOT void rpx_drv_stage_bound(struct rpx_drv *q, uint16_t id, uint32_t len)
{
	struct rpx_drv_slot *slot = &q->slots[id];
	if (slot->limit != len) {
		slot->limit = len;
		rpx_put32(&rpx_ring_desc(&q->ring, id)->len, len, q->ring.swap);
	}
	rpx_drv_stage(q, id);
}

/*
 * Stage the first `len` bytes of the buffer bound to descriptor `id`; the device sees it after rpx_drv_publish.
 * RPX_E_INVAL where it is in flight or out of range, or `len` is 0.
 */
RPX_HOT int rpx_drv_post(struct rpx_drv *q, uint16_t id, uint32_t len)
{
	if (rpx_unlikely(q->broken != 0))
		return q->broken;
	if (rpx_unlikely(id >= q->ring.num || len == 0 || q->slots[id].seq != RPX_IDLE))
		return RPX_E_INVAL;
	rpx_drv_stage_bound(q, id, len);
	return 0;
}

/* Stage one buffer in a free descriptor; `cookie` comes back from rpx_drv_get. RPX_E_FULL without a free one. */
RPX_HOT int rpx_drv_add1(struct rpx_drv *q, uint64_t addr, uint32_t len, bool write, uint32_t cookie)
{
	if (rpx_unlikely(q->broken != 0))
		return q->broken;
	if (rpx_unlikely(len == 0))
		return RPX_E_INVAL;
	if (rpx_unlikely(q->num_free == 0))
		return RPX_E_FULL;
	uint16_t head = q->free_head;
	struct rpx_drv_slot *slot = &q->slots[head];
	q->free_head = slot->next;
	q->num_free--;
	slot->limit = len;
	slot->cookie = cookie;
	slot->length = 1;
	rpx_drv_put_desc(&q->ring, head, addr, len, write ? RPX_DESC_F_WRITE : 0u, 0);
	rpx_drv_stage(q, head);
	return 0;
}

/*
 * What used.len may say at most: the bytes the device can write. A chain without any is returned with its own length
 * by OpenAMP; nobody reads that length, so it is tolerated up to the chain's size.
 */
static inline int rpx_drv_limit(const struct rpx_sg *sg, uint32_t n_out, uint32_t n_in, uint32_t *limit)
{
	uint64_t out = 0, in = 0;
	for (uint32_t i = 0; i < n_out + n_in; i++) {
		if (sg[i].len == 0)
			return RPX_E_INVAL;
		*(i < n_out ? &out : &in) += sg[i].len;
	}
	if (out + in > UINT32_MAX)
		return RPX_E_INVAL;
	*limit = (uint32_t)(n_in > 0 ? in : out);
	return 0;
}

/* Stage a chain of n_out device-readable buffers, then n_in device-writable ones (2.7.4.2-1). */
static inline int rpx_drv_add(struct rpx_drv *q, const struct rpx_sg *sg, uint32_t n_out, uint32_t n_in,
			      uint32_t cookie)
{
	uint32_t limit, n = n_out + n_in;
	if (q->broken != 0)
		return q->broken;
	if (n_out > q->ring.num || n_in > q->ring.num || n == 0 || n > q->ring.num ||
	    rpx_drv_limit(sg, n_out, n_in, &limit) != 0)
		return RPX_E_INVAL;
	if (n > q->num_free)
		return RPX_E_FULL;
	uint16_t head = q->free_head, i = head;
	for (uint32_t k = 0; k < n; k++) {
		uint16_t next = q->slots[i].next;
		uint32_t flags = (k < n_out ? 0u : RPX_DESC_F_WRITE) | (k + 1 < n ? RPX_DESC_F_NEXT : 0u);
		rpx_drv_put_desc(&q->ring, i, sg[k].addr, sg[k].len, flags, (uint16_t)(k + 1 < n ? next : 0));
		i = next;
	}
	q->free_head = i;
	q->num_free = (uint16_t)(q->num_free - n);
	q->slots[head].limit = limit;
	q->slots[head].cookie = cookie;
	q->slots[head].length = (uint16_t)n;
	rpx_drv_stage(q, head);
	return 0;
}

/*
 * The same through an indirect table of the caller's: `table` holds n_out + n_in descriptors, the device knows it by
 * `table_addr`, and it stays untouched until the chain is used. Needs VIRTIO_F_INDIRECT_DESC (2.7.5.3.1-1).
 */
static inline int rpx_drv_add_indirect(struct rpx_drv *q, struct rpx_desc *table, uint64_t table_addr,
				       const struct rpx_sg *sg, uint32_t n_out, uint32_t n_in, uint32_t cookie)
{
	uint32_t limit, n = n_out + n_in;
	if (q->broken != 0)
		return q->broken;
	if (!q->ring.indirect || n_out > q->ring.num || n_in > q->ring.num || n == 0 || n > q->ring.num ||
	    rpx_drv_limit(sg, n_out, n_in, &limit) != 0)
		return RPX_E_INVAL;
	if (q->num_free == 0)
		return RPX_E_FULL;
	for (uint32_t k = 0; k < n; k++) {
		uint32_t flags = (k < n_out ? 0u : RPX_DESC_F_WRITE) | (k + 1 < n ? RPX_DESC_F_NEXT : 0u);
		rpx_put64(&table[k].addr, sg[k].addr, q->ring.swap);
		rpx_put32(&table[k].len, sg[k].len, q->ring.swap);
		rpx_put16(&table[k].flags, (uint16_t)flags, q->ring.swap);
		rpx_put16(&table[k].next, (uint16_t)(k + 1 < n ? k + 1 : 0), q->ring.swap);
	}
	uint16_t head = q->free_head;
	struct rpx_drv_slot *slot = &q->slots[head];
	q->free_head = slot->next;
	q->num_free--;
	slot->limit = limit;
	slot->cookie = cookie;
	slot->length = 1;
	rpx_drv_put_desc(&q->ring, head, table_addr, 16u * n, RPX_DESC_F_INDIRECT, 0);
	rpx_drv_stage(q, head);
	return 0;
}

/* Publish everything staged with one store of avail.idx. True: the device wants a kick. */
RPX_HOT bool rpx_drv_publish(struct rpx_drv *q)
{
	const struct rpx_ring *r = &q->ring;
	uint16_t old = q->avail_pub, idx = q->avail_idx;
	if (old == idx || q->broken != 0)
		return false;
	/* 2.7.13.3.1-1: descriptors and ring entries before the index. */
	rpx_put16_release(rpx_ring_w16(r->avail, RPX_RING_IDX), idx, r->swap, (enum rpx_order)r->order);
	q->avail_pub = idx;
	q->seq_pub = q->seq;
	/* 2.7.13.4.1-1: the index before what the device says about notifications. */
	rpx_fence_full((enum rpx_order)r->order);
	if (r->event_idx)
		return rpx_need_event(rpx_get16(rpx_ring_avail_event(r), r->swap), idx, old);
	return (rpx_get16(rpx_ring_w16(r->used, RPX_RING_FLAGS), r->swap) & RPX_USED_F_NO_NOTIFY) == 0;
}

/*
 * How many used entries there are to take. used.idx is read again once all that it announced are taken. Negative: the
 * rule that the device broke.
 */
RPX_HOT int rpx_drv_look(struct rpx_drv *q)
{
	const struct rpx_ring *r = &q->ring;
	if (rpx_unlikely(q->broken != 0))
		return q->broken;
	if (q->last_used == q->used_seen) {
		/* Acquire: entries and buffers after the index that announces them (2.7.8.2). */
		uint16_t idx = rpx_ring_used_idx(r);
		if (rpx_unlikely(rpx_idx_diff(idx, q->last_used) > rpx_idx_diff(q->avail_pub, q->last_used)))
			return rpx_drv_fail(q, RPX_E_USED_IDX);
		q->used_seen = idx;
		q->seq_seen = q->seq_pub;
	}
	return rpx_idx_diff(q->used_seen, q->last_used);
}

/* The used entry that is next, where there is one: 0 with *id and *len, or the rule that the device broke. */
RPX_HOT int rpx_drv_peek(const struct rpx_drv *q, uint16_t *id, uint32_t *len)
{
	const struct rpx_ring *r = &q->ring;
	const struct rpx_used_elem *e = rpx_ring_used_entry(r, q->last_used);
	uint32_t head = rpx_get32(&e->id, r->swap);
	uint32_t written = rpx_get32(&e->len, r->swap);
	if (rpx_unlikely(head >= r->num))
		return RPX_E_USED_ID;
	const struct rpx_drv_slot *slot = &q->slots[head];
	if (rpx_unlikely(slot->seq >= q->seq_seen)) /* RPX_IDLE is */
		return RPX_E_USED_IDLE;
	if (rpx_unlikely(written > slot->limit))
		return RPX_E_USED_LEN;
	*id = (uint16_t)head;
	*len = written;
	return 0;
}

/*
 * The head of the next used chain: 1 with *id and *len, 0 where there is none, or the rule that the device broke. The
 * descriptors stay the caller's: see rpx_drv_post, or use rpx_drv_get.
 */
RPX_HOT int rpx_drv_used(struct rpx_drv *q, uint16_t *id, uint32_t *len)
{
	int rc = rpx_drv_look(q);
	if (rc <= 0)
		return rc;
	if (rpx_unlikely((rc = rpx_drv_peek(q, id, len)) < 0))
		return rpx_drv_fail(q, rc);
	q->slots[*id].seq = RPX_IDLE;
	q->last_used++;
	return 1;
}

/* Take the entry that rpx_drv_peek showed, and stage its bound buffer again: rpx_drv_used and rpx_drv_post in one. */
RPX_HOT void rpx_drv_turn(struct rpx_drv *q, uint16_t id, uint32_t len)
{
	q->last_used++;
	rpx_drv_stage_bound(q, id, len);
}

/* Take over the turns that were made on a copy. */
RPX_HOT void rpx_drv_turned(struct rpx_drv *q, const struct rpx_drv *copy)
{
	q->last_used = copy->last_used;
	q->avail_idx = copy->avail_idx;
	q->seq = copy->seq;
}

struct rpx_used {
	uint32_t cookie;
	uint32_t len;
};

/* The next used chain, its descriptors freed: 1 and *used, 0 where there is none, or the rule that the device broke. */
RPX_HOT int rpx_drv_get(struct rpx_drv *q, struct rpx_used *used)
{
	uint16_t head = 0;
	int rc = rpx_drv_used(q, &head, &used->len);
	if (rc <= 0)
		return rc;
	uint16_t tail = head;
	for (uint16_t k = 1; k < q->slots[head].length; k++)
		tail = q->slots[tail].next;
	q->slots[tail].next = q->free_head;
	q->free_head = head;
	q->num_free = (uint16_t)(q->num_free + q->slots[head].length);
	used->cookie = q->slots[head].cookie;
	return 1;
}

/*
 * Ask the device not to notify (advice, 2.7.7.1). With EVENT_IDX the flag stays 0 (2.7.7.1-2) and the threshold is
 * left behind, where it is met once in 65536 buffers: a spurious notification.
 */
static inline void rpx_drv_mute(struct rpx_drv *q)
{
	const struct rpx_ring *r = &q->ring;
	if (q->muted)
		return;
	q->muted = true;
	if (r->event_idx)
		rpx_put16(rpx_ring_used_event(r), rpx_idx_diff(q->last_used, 1), r->swap);
	else
		rpx_put16(rpx_ring_w16(r->avail, RPX_RING_FLAGS), RPX_AVAIL_F_NO_INTERRUPT, r->swap);
}

/* Ask for a notification at the next used buffer. True: there is one already, look again before waiting (2.7.14-1). */
static inline bool rpx_drv_unmute(struct rpx_drv *q)
{
	const struct rpx_ring *r = &q->ring;
	q->muted = false;
	if (r->event_idx)
		rpx_put16(rpx_ring_used_event(r), q->last_used, r->swap);
	else
		rpx_put16(rpx_ring_w16(r->avail, RPX_RING_FLAGS), 0, r->swap);
	rpx_fence_full((enum rpx_order)r->order); /* 2.7.14-1: the request before the second look */
	return rpx_drv_pending(q);
}

/* ------------------------------------------------------------------------------------------------- device ---- */

struct rpx_dev {
	struct rpx_ring ring;
	uint32_t *seen; /* [num]: RPX_HELD, or the look (see below) during which the head was given back */
	int broken;
	uint32_t look; /* counts the reads of avail.idx that found something */
	uint16_t last_avail;
	uint16_t avail_seen; /* avail.idx as last read and checked */
	uint16_t used_idx;   /* next entry to fill; those behind used_pub are not published yet */
	uint16_t used_pub;
	uint16_t held; /* heads taken and not pushed */
	bool muted;
};

static inline int rpx_dev_broken(const struct rpx_dev *q)
{
	return q->broken;
}

/* Is something available that was not looked at yet? Reads one index. */
static inline bool rpx_dev_pending(const struct rpx_dev *q)
{
	return rpx_ring_avail_idx(&q->ring) != q->last_avail;
}

/* A piece of a chain: memory that was checked, and whether the device may write it. */
struct rpx_seg {
	uint8_t *ptr;
	uint32_t len;
	bool write;
};

static inline int rpx_dev_fail(struct rpx_dev *q, int error)
{
	q->broken = error;
	return error;
}

/*
 * Take over a ring; `seen` has num entries. Touches no shared memory. A fresh ring has both indices 0; a device
 * takes used_idx from used.idx once where the driver may have filled that ring itself (rpmsg-lite does).
 */
static inline void rpx_dev_init(struct rpx_dev *q, const struct rpx_ring *ring, uint32_t *seen, uint16_t avail_idx,
				uint16_t used_idx)
{
	RPX_ASSIGN(&q->ring, ring);
	q->seen = seen;
	q->broken = 0;
	q->look = 1;
	q->last_avail = q->avail_seen = avail_idx;
	q->used_idx = q->used_pub = used_idx;
	q->held = 0;
	q->muted = false;
	for (uint32_t i = 0; i < ring->num; i++)
		seen[i] = 0;
}

#define RPX_HELD 0xffffffffu

/*
 * Entries under one value of avail.idx cannot name a head that is held, nor one that was given back since that value
 * was read: the driver had not seen it back when it stored the value. The look's number stands for the value; before
 * it wraps, old marks are wiped.
 */
static inline void rpx_dev_next_look(struct rpx_dev *q)
{
	if (rpx_unlikely(++q->look == RPX_HELD)) {
		for (uint32_t i = 0; i < q->ring.num; i++) {
			if (q->seen[i] != RPX_HELD)
				q->seen[i] = 0;
		}
		q->look = 1;
	}
}

/*
 * How many heads there are to take. avail.idx is read again once all that it announced are taken. Negative: the rule
 * that the driver broke.
 */
RPX_HOT int rpx_dev_look(struct rpx_dev *q)
{
	const struct rpx_ring *r = &q->ring;
	if (rpx_unlikely(q->broken != 0))
		return q->broken;
	if (q->last_avail == q->avail_seen) {
		/* Acquire: entries, descriptors and buffers after the index that announces them (2.7.13.3.1-1). */
		uint16_t idx = rpx_ring_avail_idx(r);
		if (idx == q->last_avail)
			return 0;
		/* The driver has back only what was published: neither what is held nor what is staged. */
		uint16_t staged = rpx_idx_diff(q->used_idx, q->used_pub);
		if (rpx_unlikely(rpx_idx_diff(idx, q->last_avail) > (uint16_t)(r->num - q->held - staged)))
			return rpx_dev_fail(q, RPX_E_AVAIL_IDX);
		q->avail_seen = idx;
		rpx_dev_next_look(q);
	}
	return rpx_idx_diff(q->avail_seen, q->last_avail);
}

/* The head that is next, where there is one: 0 and *head, or the rule that the driver broke. */
RPX_HOT int rpx_dev_peek(const struct rpx_dev *q, uint16_t *head)
{
	const struct rpx_ring *r = &q->ring;
	uint16_t h = rpx_get16(rpx_ring_avail_entry(r, q->last_avail), r->swap);
	if (rpx_unlikely(h >= r->num))
		return RPX_E_AVAIL_HEAD;
	if (rpx_unlikely(q->seen[h] >= q->look)) /* RPX_HELD is */
		return RPX_E_AVAIL_TWICE;
	*head = h;
	return 0;
}

/* The next available head: 1 and *head, 0 where there is none, or the rule that the driver broke. */
RPX_HOT int rpx_dev_pop(struct rpx_dev *q, uint16_t *head)
{
	int rc = rpx_dev_look(q);
	if (rc <= 0)
		return rc;
	if (rpx_unlikely((rc = rpx_dev_peek(q, head)) < 0))
		return rpx_dev_fail(q, rc);
	q->seen[*head] = RPX_HELD;
	q->held++;
	q->last_avail++;
	return 1;
}

/* A descriptor, each field read once. */
struct rpx_desc_copy {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

static inline struct rpx_desc_copy rpx_desc_read(const struct rpx_desc *d, bool swap)
{
	struct rpx_desc_copy c;
	c.addr = rpx_get64(&d->addr, swap);
	c.len = rpx_get32(&d->len, swap);
	c.flags = rpx_get16(&d->flags, swap);
	c.next = rpx_get16(&d->next, swap);
	return c;
}

/* The memory of one descriptor, checked. */
RPX_HOT int rpx_dev_segment(const struct rpx_mem *mem, const struct rpx_desc_copy *d, struct rpx_seg *seg)
{
	seg->write = (d->flags & RPX_DESC_F_WRITE) != 0;
	seg->len = d->len;
	if (rpx_unlikely(d->len == 0))
		return RPX_E_DESC_LEN;
	seg->ptr = rpx_mem_at(mem, d->addr, d->len, seg->write ? RPX_PERM_WRITE : RPX_PERM_READ);
	return rpx_likely(seg->ptr != NULL) ? 0 : RPX_E_DESC_ADDR;
}

/*
 * The fast path for a head that is one direct descriptor: 1 and *seg. 0: it is a chain or an indirect table, walk it
 * with rpx_chain_begin and rpx_chain_next. Negative: the rule that the driver broke.
 */
RPX_HOT int rpx_dev_single(struct rpx_dev *q, const struct rpx_mem *mem, uint16_t head, struct rpx_seg *seg)
{
	if (rpx_unlikely(q->broken < 0))
		return q->broken;
	struct rpx_desc_copy d = rpx_desc_read(rpx_ring_desc(&q->ring, head), q->ring.swap);
	if (rpx_unlikely((d.flags & (RPX_DESC_F_NEXT | RPX_DESC_F_INDIRECT)) != 0))
		return 0;
	int rc = rpx_dev_segment(mem, &d, seg);
	return rpx_likely(rc == 0) ? 1 : rpx_dev_fail(q, rc);
}

/*
 * The memory of a head that is one direct descriptor of that direction: a pointer to *len bytes, which may be 0. NULL
 * where it is anything else: rpx_dev_single and rpx_chain_next tell.
 */
RPX_HOT uint8_t *rpx_dev_buffer(const struct rpx_dev *q, const struct rpx_mem *mem, uint16_t head, bool write,
				uint32_t *len)
{
	const struct rpx_desc *d = rpx_ring_desc(&q->ring, head);
	uint32_t kind = rpx_get16(&d->flags, q->ring.swap) & (RPX_DESC_F_NEXT | RPX_DESC_F_INDIRECT | RPX_DESC_F_WRITE);
	*len = rpx_get32(&d->len, q->ring.swap);
	if (rpx_unlikely(kind != (write ? RPX_DESC_F_WRITE : 0u)))
		return NULL;
	return rpx_mem_at(mem, rpx_get64(&d->addr, q->ring.swap), *len, write ? RPX_PERM_WRITE : RPX_PERM_READ);
}

/* A walk along a chain, with a budget of steps (the queue size) and of bytes (the caller's). */
struct rpx_chain {
	const struct rpx_desc *table; /* the queue's, or an indirect one */
	uint32_t table_num;
	uint32_t index;
	uint32_t steps_left;
	uint32_t bytes_left;
	bool indirect;
	bool wrote; /* a device-writable element was seen */
	bool end;
};

static inline void rpx_chain_begin(struct rpx_chain *c, const struct rpx_dev *q, uint16_t head, uint32_t max_bytes)
{
	c->table = rpx_ring_desc(&q->ring, 0);
	c->table_num = q->ring.num;
	c->index = head;
	c->steps_left = q->ring.num;
	c->bytes_left = max_bytes;
	c->indirect = c->wrote = c->end = false;
}

/* Step into an indirect table; `d` pointed at it. Its own WRITE flag is ignored (2.7.5.3.2-1). */
static inline int rpx_chain_enter(struct rpx_chain *c, const struct rpx_dev *q, const struct rpx_mem *mem,
				  const struct rpx_desc_copy *d)
{
	if (!q->ring.indirect)
		return RPX_E_INDIRECT_OFF;
	if (c->indirect)
		return RPX_E_INDIRECT_NESTED;
	if ((d->flags & RPX_DESC_F_NEXT) != 0)
		return RPX_E_INDIRECT_NEXT;
	if (d->len == 0 || d->len % 16u != 0)
		return RPX_E_INDIRECT_LEN;
	/* The table's fields are read as such, so it must be aligned here; no driver makes one that is not. */
	uint8_t *table = rpx_mem_at(mem, d->addr, d->len, RPX_PERM_READ);
	if (table == NULL || ((uintptr_t)table & 7u) != 0)
		return RPX_E_DESC_ADDR;
	c->table = (const struct rpx_desc *)(const void *)table;
	c->table_num = d->len / 16u;
	c->index = 0;
	c->indirect = true;
	return 0;
}

/* The next element: 1 and *seg, 0 at the end, or the rule that the driver broke. */
static inline int rpx_chain_next(struct rpx_chain *c, struct rpx_dev *q, const struct rpx_mem *mem, struct rpx_seg *seg)
{
	int rc;
	if (q->broken < 0)
		return q->broken;
	if (c->end)
		return 0;
	if (c->steps_left-- == 0)
		return rpx_dev_fail(q, RPX_E_CHAIN_STEPS);
	struct rpx_desc_copy d = rpx_desc_read(&c->table[c->index], q->ring.swap);
	if ((d.flags & RPX_DESC_F_INDIRECT) != 0) {
		if ((rc = rpx_chain_enter(c, q, mem, &d)) != 0)
			return rpx_dev_fail(q, rc);
		d = rpx_desc_read(&c->table[0], q->ring.swap);
		if ((d.flags & RPX_DESC_F_INDIRECT) != 0)
			return rpx_dev_fail(q, RPX_E_INDIRECT_NESTED);
	}
	if ((rc = rpx_dev_segment(mem, &d, seg)) != 0)
		return rpx_dev_fail(q, rc);
	if (c->wrote && !seg->write)
		return rpx_dev_fail(q, RPX_E_DESC_ORDER);
	if (seg->len > c->bytes_left)
		return rpx_dev_fail(q, RPX_E_CHAIN_BYTES);
	c->wrote = seg->write;
	c->bytes_left -= seg->len;
	if ((d.flags & RPX_DESC_F_NEXT) == 0)
		c->end = true;
	else if (d.next >= c->table_num)
		return rpx_dev_fail(q, RPX_E_CHAIN_NEXT);
	else
		c->index = d.next;
	return 1;
}

RPX_HOT void rpx_dev_stage(struct rpx_dev *q, uint16_t head, uint32_t len)
{
	const struct rpx_ring *r = &q->ring;
	struct rpx_used_elem *e = rpx_ring_used_entry(r, q->used_idx);
	rpx_put32(&e->id, head, r->swap);
	rpx_put32(&e->len, len, r->swap); /* 2.7.8.2-1: before the index */
	q->seen[head] = q->look;
	q->used_idx++;
}

/*
 * Stage the used entry of `head`, of whose writable bytes the first `len` were written. `head` must have been popped
 * and not pushed since: RPX_E_INVAL otherwise. The driver sees it after rpx_dev_publish.
 */
RPX_HOT int rpx_dev_push(struct rpx_dev *q, uint16_t head, uint32_t len)
{
	if (rpx_unlikely(q->broken != 0))
		return q->broken;
	if (rpx_unlikely(head >= q->ring.num || q->seen[head] != RPX_HELD))
		return RPX_E_INVAL;
	rpx_dev_stage(q, head, len);
	q->held--;
	return 0;
}

/* Take the head that rpx_dev_peek showed, and stage its used entry: rpx_dev_pop and rpx_dev_push in one. */
RPX_HOT void rpx_dev_turn(struct rpx_dev *q, uint16_t head, uint32_t len)
{
	q->last_avail++;
	rpx_dev_stage(q, head, len);
}

/* Take over the turns that were made on a copy. */
RPX_HOT void rpx_dev_turned(struct rpx_dev *q, const struct rpx_dev *copy)
{
	q->last_avail = copy->last_avail;
	q->used_idx = copy->used_idx;
}

/* Publish everything staged with one store of used.idx. True: the driver wants a notification. */
RPX_HOT bool rpx_dev_publish(struct rpx_dev *q)
{
	const struct rpx_ring *r = &q->ring;
	uint16_t old = q->used_pub, idx = q->used_idx;
	if (old == idx || q->broken != 0)
		return false;
	/* 2.7.8.2: buffers and entries before the index. */
	rpx_put16_release(rpx_ring_w16(r->used, RPX_RING_IDX), idx, r->swap, (enum rpx_order)r->order);
	q->used_pub = idx;
	/* The mirror of 2.7.13.4.1-1: the index before what the driver says about notifications. */
	rpx_fence_full((enum rpx_order)r->order);
	if (r->event_idx)
		return rpx_need_event(rpx_get16(rpx_ring_used_event(r), r->swap), idx, old);
	return (rpx_get16(rpx_ring_w16(r->avail, RPX_RING_FLAGS), r->swap) & RPX_AVAIL_F_NO_INTERRUPT) == 0;
}

/* Ask the driver not to kick (advice, 2.7.10.2). With EVENT_IDX see rpx_drv_mute. */
static inline void rpx_dev_mute(struct rpx_dev *q)
{
	const struct rpx_ring *r = &q->ring;
	if (q->muted)
		return;
	q->muted = true;
	if (r->event_idx)
		rpx_put16(rpx_ring_avail_event(r), rpx_idx_diff(q->last_avail, 1), r->swap);
	else
		rpx_put16(rpx_ring_w16(r->used, RPX_RING_FLAGS), RPX_USED_F_NO_NOTIFY, r->swap);
}

/* Ask for a kick at the next available buffer. True: there is one already, look again before waiting. */
static inline bool rpx_dev_unmute(struct rpx_dev *q)
{
	const struct rpx_ring *r = &q->ring;
	q->muted = false;
	if (r->event_idx)
		rpx_put16(rpx_ring_avail_event(r), q->last_avail, r->swap);
	else
		rpx_put16(rpx_ring_w16(r->used, RPX_RING_FLAGS), 0, r->swap);
	rpx_fence_full((enum rpx_order)r->order);
	return rpx_dev_pending(q);
}

#endif
