/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The packed virtqueue (VIRTIO 1.2, 2.8), both roles: one ring of descriptors, which both ends write. An end takes, in
 * ring order, what the other one has made over to it, and makes it over in turn; the two mirror each other:
 *
 *                     takes                   gives              both count
 *   driver            used descriptors        available ones     descriptors of a buffer: one used one stands for all
 *   device            available descriptors   used ones
 *
 * A descriptor says by two flag bits whose it is. What is given waits for rpx_packed_publish, which writes the flags of
 * the first descriptor after everything else, so that the other end sees all of it or nothing.
 *
 *   driver                                             device
 *   rpx_packed_init(&q, &ring, bufs, false, START)     rpx_packed_init(&q, &ring, bufs, true, START)
 *   rpx_packed_post(&q, id, addr, len, false)          rpx_packed_pop(&q, &chain) == 1
 *   if (rpx_packed_publish(&q)) kick();                rpx_packed_next(&chain, &q, &mem, &seg) == 1, until it is 0
 *   rpx_packed_used(&q, &id, &len) == 1                rpx_packed_push(&q, chain.id, written)
 *                                                      if (rpx_packed_publish(&q)) kick();
 *
 * What split.h says of private memory, of fields read once, of broken queues and of threads holds here too, but that a
 * device reads the flags of a list twice: how many descriptors it has is decided the first time (rpx_packed_pop), what
 * kind each is the second time (rpx_packed_next), which does not trust the first.
 */
#ifndef RPX_PACKED_H
#define RPX_PACKED_H

#include "split.h"

/* The error values on a packed ring: X(name, rule id, text). Those that are not here cannot come from one. */
#define RPX_PACKED_ERRORS(X) \
	X(AVAIL_IDX, "2.8.1-avail", "more descriptors are available than the queue has") \
	X(AVAIL_HEAD, "2.8.13-id", "an available buffer has an id outside the queue") \
	X(AVAIL_TWICE, "2.8.13-twice", "an available buffer has the id of one that the device still holds") \
	X(USED_ID, "2.8.13-used", "a used buffer has an id outside the queue") \
	X(USED_IDLE, "2.8.13-idle", "a used buffer has an id that is not outstanding") \
	X(USED_LEN, "2.8.4-len", "a used buffer's length is more than it can hold") \
	X(DESC_ADDR, "2.8.13-addr", "a descriptor points outside the memory it may use") \
	X(DESC_LEN, "2.8.13-zero", "a descriptor has length 0") \
	X(DESC_ORDER, "2.8.17-3", "a device-readable descriptor follows a device-writable one") \
	X(DESC_READONLY, "2.8.15-1", "a buffer to be written is device-readable") \
	X(CHAIN_NEXT, "2.8.6-F1", "a list goes on in a descriptor that is not available") \
	X(CHAIN_STEPS, "2.8.17-2", "a list has more elements than the queue") \
	X(CHAIN_BYTES, "2.8.18-2", "a list has more bytes than allowed") \
	X(INDIRECT_OFF, "2.8.19-1", "an indirect descriptor was not negotiated") \
	X(INDIRECT_NEXT, "2.8.19-4", "an indirect descriptor in a list") \
	X(INDIRECT_LEN, "2.8.7-len", "an indirect table's length is not a multiple of 16") \
	X(INVAL, "", "invalid argument") \
	X(FULL, "", "no free descriptor")

static inline const char *rpx_packed_error_rule(int e)
{
	switch (e) {
#define RPX_X(name, rule, text) case RPX_E_##name: return rule;
	RPX_PACKED_ERRORS(RPX_X)
#undef RPX_X
	default: return "";
	}
}

static inline const char *rpx_packed_error_text(int e)
{
	switch (e) {
#define RPX_X(name, rule, text) case RPX_E_##name: return text;
	RPX_PACKED_ERRORS(RPX_X)
#undef RPX_X
	default: return "unknown error";
	}
}

/* Where the three parts of a ring lie and how its fields are read. Private memory. */
struct rpx_packed_ring {
	struct rpx_packed_desc *desc;
	struct rpx_w32 *driver; /* event suppression: written by the driver, read by the device */
	struct rpx_w32 *device;
	uint32_t last;  /* num - 1 */
	uint16_t num;   /* need not be a power of two */
	uint8_t order;  /* enum rpx_order */
	bool swap;      /* fields are in the other byte order */
	bool event_idx; /* VIRTIO_F_EVENT_IDX was negotiated */
	bool indirect;  /* VIRTIO_F_INDIRECT_DESC was negotiated */
};

#define RPX_PACKED_EVENT_BYTES 4u

/*
 * A ring in three parts. RPX_E_INVAL where num is not 1 to 32768 or a part is not aligned to 16, 4 and 4 (2.8.11-1).
 * The caller has checked that 16 * num, 4 and 4 bytes are there.
 */
static inline int rpx_packed_ring_init(struct rpx_packed_ring *r, uint8_t *desc, uint8_t *driver, uint8_t *device,
				       uint32_t num, enum rpx_order order, bool swap)
{
	if (num == 0 || num > RPX_QUEUE_MAX)
		return RPX_E_INVAL;
	if (((uintptr_t)desc & 15u) != 0 || ((uintptr_t)driver & 3u) != 0 || ((uintptr_t)device & 3u) != 0)
		return RPX_E_INVAL;
	r->desc = (struct rpx_packed_desc *)(void *)desc;
	r->driver = (struct rpx_w32 *)(void *)driver;
	r->device = (struct rpx_w32 *)(void *)device;
	r->num = (uint16_t)num;
	r->last = num - 1u;
	r->order = (uint8_t)order;
	r->swap = swap;
	r->event_idx = false;
	r->indirect = false;
	return 0;
}

/* The driver, before the device may look: everything zero. */
static inline void rpx_packed_ring_zero(const struct rpx_packed_ring *r)
{
	rpx_zero(r->desc, 16u * (size_t)r->num);
	rpx_zero(r->driver, RPX_PACKED_EVENT_BYTES);
	rpx_zero(r->device, RPX_PACKED_EVENT_BYTES);
}

/*
 * A place in the ring: the slot in bits 0 to 14, and in bit 15 the wrap counter, which changes with each round. So it
 * stands in the event suppression structures, too.
 */
#define RPX_PACKED_WRAP 0x8000u
#define RPX_PACKED_START 0x8000u /* slot 0, wrap counter 1 (2.8.1) */

RPX_HOT uint32_t rpx_packed_slot(uint32_t at)
{
	return at & 0x7fffu;
}

/* The place `n` <= num slots further on. */
static inline uint32_t rpx_packed_after(const struct rpx_packed_ring *r, uint32_t at, uint32_t n)
{
	uint32_t slot = rpx_packed_slot(at) + n, wrap = at & RPX_PACKED_WRAP;
	if (slot >= r->num) {
		slot -= r->num;
		wrap ^= RPX_PACKED_WRAP;
	}
	return slot | wrap;
}

/* Slots from `from` on to `to`, in two rounds of them. */
static inline uint32_t rpx_packed_distance(const struct rpx_packed_ring *r, uint32_t from, uint32_t to)
{
	uint32_t n = rpx_packed_slot(to) + 2u * r->num - rpx_packed_slot(from);
	if (((from ^ to) & RPX_PACKED_WRAP) != 0)
		n += r->num;
	return n % (2u * r->num);
}

/* AVAIL and USED of a descriptor in that place: used, they are both the wrap counter; available, USED is not (2.8.1). */
#define RPX_PACKED_MARKS (RPX_PACKED_F_AVAIL | RPX_PACKED_F_USED)

static inline uint32_t rpx_packed_marks(uint32_t at, bool used)
{
	return ((at & RPX_PACKED_WRAP) != 0 ? RPX_PACKED_MARKS : 0u) ^ (used ? 0u : RPX_PACKED_F_USED);
}

/* A place that goes round the ring, and the marks of a descriptor there. */
struct rpx_packed_cursor {
	uint32_t at;
	uint32_t marks;
};

RPX_HOT void rpx_packed_step(struct rpx_packed_cursor *c, const struct rpx_packed_ring *r)
{
	if (rpx_likely(rpx_packed_slot(c->at) != r->last)) {
		c->at++;
	} else {
		c->at = (c->at & RPX_PACKED_WRAP) ^ RPX_PACKED_WRAP;
		c->marks ^= RPX_PACKED_MARKS;
	}
}

static inline void rpx_packed_jump(struct rpx_packed_cursor *c, const struct rpx_packed_ring *r, uint32_t n)
{
	uint32_t to = rpx_packed_after(r, c->at, n);
	if (((c->at ^ to) & RPX_PACKED_WRAP) != 0)
		c->marks ^= RPX_PACKED_MARKS;
	c->at = to;
}

/* What an end knows of a buffer, by its id. */
struct rpx_packed_buf {
	uint64_t seq;    /* driver: number of the buffer in flight, since rpx_packed_init; or RPX_IDLE */
	uint8_t *ptr;    /* device: a buffer that was taken and waits to be filled (rpx_packed_keep) */
	uint32_t len;    /* driver: the most that the device may have written; device: bytes at ptr */
	uint32_t cookie; /* driver: the caller's, given back by rpx_packed_get */
	uint16_t length; /* its descriptors; driver, rpx_packed_post: 1; device: 0 where it holds no such buffer */
	uint16_t next;   /* driver: the next of the free list */
};

struct rpx_packed {
	struct rpx_packed_ring ring;
	struct rpx_packed_buf *bufs; /* [num] */
	int broken;                  /* 0, or the error that broke the queue */
	bool device;
	bool muted;
	struct rpx_packed_cursor take; /* the next descriptor to look at, marked so that it is ours */
	struct rpx_packed_cursor give; /* the next one to write, marked so that it is the other end's */
	uint32_t pub;         /* up to where the other end may know of it */
	uint16_t first_flags; /* of the descriptor at pub, once there is one to publish */
	uint16_t num_free;    /* driver, with rpx_packed_add: descriptors */
	uint16_t free_head;
	uint32_t taken; /* buffers so far, without those that were given back at once */
	uint32_t given;
	uint64_t seq;     /* driver: buffers given; 64 bits, so that one which the device keeps for ever stays old */
	uint64_t seq_pub; /* of them published: only these can be used */
};

static inline int rpx_packed_fail(struct rpx_packed *q, int error)
{
	q->broken = error;
	return error;
}

/*
 * Take over a ring, which the driver has zeroed; `bufs` has num entries. Both begin at `at`: RPX_PACKED_START, or where
 * a device goes on. Touches no shared memory; notifications are on, as zero means.
 */
static inline void rpx_packed_init(struct rpx_packed *q, const struct rpx_packed_ring *ring,
				   struct rpx_packed_buf *bufs, bool device, uint32_t at)
{
	RPX_ASSIGN(&q->ring, ring);
	q->bufs = bufs;
	q->broken = 0;
	q->device = device;
	q->muted = false;
	q->take.at = q->give.at = q->pub = at;
	q->take.marks = rpx_packed_marks(at, !device);
	q->give.marks = rpx_packed_marks(at, device);
	q->first_flags = 0;
	q->num_free = ring->num;
	q->free_head = 0;
	q->taken = q->given = 0;
	q->seq = q->seq_pub = 0;
	for (uint32_t i = 0; i < ring->num; i++) {
		bufs[i].seq = RPX_IDLE;
		bufs[i].ptr = NULL;
		bufs[i].len = bufs[i].cookie = 0;
		bufs[i].length = device ? 0 : 1;
		bufs[i].next = (uint16_t)(i + 1u);
	}
}

/* ------------------------------------------------------------------------------------------------ both ends ---- */

/* The flags of a descriptor. Acquire: the rest of it, and the buffer, after them (2.8.15-3, 2.8.16-1). */
RPX_HOT uint32_t rpx_packed_flags(const struct rpx_packed *q, uint32_t at)
{
	const struct rpx_packed_ring *r = &q->ring;
	return rpx_get16_acquire(&r->desc[rpx_packed_slot(at)].flags, r->swap, (enum rpx_order)r->order);
}

/* Is a descriptor with these flags, and a cursor's marks, the other end's no more? */
RPX_HOT bool rpx_packed_is_ours(uint32_t flags, uint32_t marks)
{
	return (flags & RPX_PACKED_MARKS) == marks;
}

/* Is there something to take? Reads one field. */
RPX_HOT bool rpx_packed_pending(const struct rpx_packed *q)
{
	return rpx_packed_is_ours(rpx_packed_flags(q, q->take.at), q->take.marks);
}

static inline int rpx_packed_broken(const struct rpx_packed *q)
{
	return q->broken;
}

/* How many buffers there may be to take: each descriptor says for itself. Negative: the rule that was broken. */
RPX_HOT int rpx_packed_look(const struct rpx_packed *q)
{
	if (rpx_unlikely(q->broken != 0))
		return q->broken;
	return rpx_packed_pending(q) ? q->ring.num : 0;
}

/*
 * Write the flags of the next descriptor to give, whose other fields are there; it is the last thing that is done to it
 * (2.8.15-4, 2.8.16-2). Those of the first one since rpx_packed_publish wait for that.
 */
RPX_HOT void rpx_packed_stage(struct rpx_packed *q, uint32_t flags)
{
	const struct rpx_packed_ring *r = &q->ring;
	flags |= q->give.marks;
	if (q->give.at == q->pub)
		q->first_flags = (uint16_t)flags;
	else
		rpx_put16(&r->desc[rpx_packed_slot(q->give.at)].flags, (uint16_t)flags, r->swap);
}

/* Make over everything staged with one store. True: the other end wants to be told. */
RPX_HOT bool rpx_packed_publish(struct rpx_packed *q)
{
	const struct rpx_packed_ring *r = &q->ring;
	uint32_t old = q->pub, now = q->give.at;
	if (old == now || q->broken != 0)
		return false;
	/* 2.8.21.1.1-1, 2.8.17-6: all that is staged before the flags that make its first descriptor visible. */
	rpx_put16_release(&r->desc[rpx_packed_slot(old)].flags, q->first_flags, r->swap, (enum rpx_order)r->order);
	q->pub = now;
	q->seq_pub = q->seq;
	/* 2.8.21.3.1-1: the flags before what the other end says about notifications. */
	rpx_fence_full((enum rpx_order)r->order);
	uint32_t event = rpx_get32(q->device ? r->driver : r->device, r->swap);
	uint32_t wants = event >> 16 & 3u;
	if (wants == RPX_PACKED_EVENT_DESC && r->event_idx)
		return rpx_packed_distance(r, old, event & 0xffffu) < rpx_packed_distance(r, old, now);
	return wants != RPX_PACKED_EVENT_DISABLE;
}

/* Take over the turns that were made on a copy. */
RPX_HOT void rpx_packed_turned(struct rpx_packed *q, const struct rpx_packed *copy)
{
	q->take = copy->take;
	q->give = copy->give;
	q->first_flags = copy->first_flags;
	q->seq = copy->seq;
}

/* Ask the other end not to notify: advice, also with EVENT_IDX (2.8.10). */
static inline void rpx_packed_mute(struct rpx_packed *q)
{
	const struct rpx_packed_ring *r = &q->ring;
	if (q->muted)
		return;
	q->muted = true;
	rpx_put32(q->device ? r->device : r->driver, RPX_PACKED_EVENT_DISABLE << 16, r->swap);
}

/* Ask for a notification at the next buffer. True: there is one already, look again before waiting (2.8.22-1). */
static inline bool rpx_packed_unmute(struct rpx_packed *q)
{
	const struct rpx_packed_ring *r = &q->ring;
	uint32_t wants = r->event_idx ? RPX_PACKED_EVENT_DESC << 16 | q->take.at : RPX_PACKED_EVENT_ENABLE << 16;
	q->muted = false;
	rpx_put32(q->device ? r->device : r->driver, wants, r->swap);
	rpx_fence_full((enum rpx_order)r->order); /* the request before the second look */
	return rpx_packed_pending(q);
}

/* ------------------------------------------------------------------------------------------------- driver ---- */

/* Stage a descriptor of a buffer. */
RPX_HOT void rpx_packed_put(struct rpx_packed *q, uint64_t addr, uint32_t len, uint16_t id, uint32_t flags)
{
	const struct rpx_packed_ring *r = &q->ring;
	struct rpx_packed_desc *d = &r->desc[rpx_packed_slot(q->give.at)];
	rpx_put64(&d->addr, addr, r->swap);
	rpx_put32(&d->len, len, r->swap);
	rpx_put16(&d->id, id, r->swap);
	rpx_packed_stage(q, flags);
	rpx_packed_step(&q->give, r);
}

/* Stage the buffer `id` of one descriptor, which is idle. */
RPX_HOT void rpx_packed_post_idle(struct rpx_packed *q, uint16_t id, uint64_t addr, uint32_t len, bool write)
{
	struct rpx_packed_buf *buf = &q->bufs[id];
	buf->seq = q->seq++;
	buf->len = write ? len : 0;
	rpx_packed_put(q, addr, len, id, write ? RPX_DESC_F_WRITE : 0u);
}

/*
 * A driver that numbers its buffers itself, each of one descriptor: rpx_packed_post and rpx_packed_used. Such a queue
 * uses no free list, so never mix these with rpx_packed_add and rpx_packed_get. RPX_E_INVAL where the buffer is in
 * flight or out of range, or `len` is 0.
 */
RPX_HOT int rpx_packed_post(struct rpx_packed *q, uint16_t id, uint64_t addr, uint32_t len, bool write)
{
	if (rpx_unlikely(q->broken != 0))
		return q->broken;
	if (rpx_unlikely(id >= q->ring.num || len == 0 || q->bufs[id].seq != RPX_IDLE))
		return RPX_E_INVAL;
	rpx_packed_post_idle(q, id, addr, len, write);
	q->given++;
	return 0;
}

/*
 * The used buffer that is next: 1 with *id and *len, the bytes that the device wrote, 0 where there is none, or the rule
 * that the device broke. The length means nothing where the device could write nothing, nor without WRITE (2.8.4); but
 * QEMU never sets that, so a length that can be is taken.
 */
RPX_HOT int rpx_packed_peek_used(const struct rpx_packed *q, uint16_t *id, uint32_t *len)
{
	const struct rpx_packed_ring *r = &q->ring;
	const struct rpx_packed_desc *d = &r->desc[rpx_packed_slot(q->take.at)];
	uint32_t flags = rpx_packed_flags(q, q->take.at);
	if (!rpx_packed_is_ours(flags, q->take.marks))
		return 0;
	uint16_t used = rpx_get16(&d->id, r->swap);
	uint32_t written = rpx_get32(&d->len, r->swap);
	if (rpx_unlikely(used >= r->num))
		return RPX_E_USED_ID;
	const struct rpx_packed_buf *buf = &q->bufs[used];
	if (rpx_unlikely(buf->seq >= q->seq_pub)) /* RPX_IDLE is */
		return RPX_E_USED_IDLE;
	if (rpx_unlikely(written > buf->len)) {
		if (buf->len != 0 && (flags & RPX_DESC_F_WRITE) != 0)
			return RPX_E_USED_LEN;
		written = 0;
	}
	*id = used;
	*len = written;
	return 1;
}

/* Take it: the device has jumped over as many slots as the buffer had descriptors (2.8.6). */
RPX_HOT int rpx_packed_used(struct rpx_packed *q, uint16_t *id, uint32_t *len)
{
	int rc = rpx_unlikely(q->broken != 0) ? q->broken : rpx_packed_peek_used(q, id, len);
	if (rc <= 0)
		return rc < 0 ? rpx_packed_fail(q, rc) : 0;
	q->bufs[*id].seq = RPX_IDLE;
	rpx_packed_jump(&q->take, &q->ring, q->bufs[*id].length);
	q->taken++;
	return 1;
}

/* Take the buffer that rpx_packed_peek_used showed, and stage it again: rpx_packed_used and rpx_packed_post in one. */
RPX_HOT void rpx_packed_turn_used(struct rpx_packed *q, uint16_t id, uint64_t addr, uint32_t len, bool write)
{
	rpx_packed_step(&q->take, &q->ring);
	rpx_packed_post_idle(q, id, addr, len, write);
}

/* Take a buffer id, and `n` descriptors, off the free ones. RPX_E_FULL where there are not so many (2.8.17-5). */
static inline int rpx_packed_reserve(struct rpx_packed *q, uint32_t n, uint32_t limit, uint32_t cookie, uint16_t *id)
{
	if (n > q->num_free)
		return RPX_E_FULL;
	*id = q->free_head;
	struct rpx_packed_buf *buf = &q->bufs[*id];
	q->free_head = buf->next;
	q->num_free = (uint16_t)(q->num_free - n);
	buf->seq = q->seq++;
	buf->len = limit;
	buf->cookie = cookie;
	buf->length = (uint16_t)n;
	q->given++;
	return 0;
}

/* What rpx_packed_add and rpx_packed_add_indirect check of their arguments; *limit as in rpx_packed_buf.len. */
static inline int rpx_packed_check(const struct rpx_packed *q, const struct rpx_sg *sg, uint32_t n_out, uint32_t n_in,
				   uint32_t *limit)
{
	uint32_t num = q->ring.num;
	if (q->broken != 0)
		return q->broken;
	if (n_out > num || n_in > num || n_out + n_in == 0 || n_out + n_in > num ||
	    rpx_drv_limit(sg, n_out, n_in, limit) != 0)
		return RPX_E_INVAL;
	if (n_in == 0)
		*limit = 0;
	return 0;
}

/* Stage a list of n_out device-readable buffers, then n_in device-writable ones (2.8.17-3). */
static inline int rpx_packed_add(struct rpx_packed *q, const struct rpx_sg *sg, uint32_t n_out, uint32_t n_in,
				 uint32_t cookie)
{
	uint32_t limit, n = n_out + n_in;
	uint16_t id;
	int rc = rpx_packed_check(q, sg, n_out, n_in, &limit);
	if (rc != 0 || (rc = rpx_packed_reserve(q, n, limit, cookie, &id)) != 0)
		return rc;
	for (uint32_t k = 0; k < n; k++) {
		uint32_t flags = (k < n_out ? 0u : RPX_DESC_F_WRITE) | (k + 1 < n ? RPX_DESC_F_NEXT : 0u);
		rpx_packed_put(q, sg[k].addr, sg[k].len, id, flags);
	}
	return 0;
}

/*
 * The same through an indirect table of the caller's: `table` holds n_out + n_in descriptors, the device knows it by
 * `table_addr`, and it stays untouched until the list is used. Needs VIRTIO_F_INDIRECT_DESC (2.8.19-1).
 */
static inline int rpx_packed_add_indirect(struct rpx_packed *q, struct rpx_packed_desc *table, uint64_t table_addr,
					  const struct rpx_sg *sg, uint32_t n_out, uint32_t n_in, uint32_t cookie)
{
	uint32_t limit, n = n_out + n_in;
	uint16_t id;
	int rc = rpx_packed_check(q, sg, n_out, n_in, &limit);
	if (rc == 0 && !q->ring.indirect)
		rc = RPX_E_INVAL;
	if (rc != 0 || (rc = rpx_packed_reserve(q, 1, limit, cookie, &id)) != 0)
		return rc;
	for (uint32_t k = 0; k < n; k++) {
		rpx_put64(&table[k].addr, sg[k].addr, q->ring.swap);
		rpx_put32(&table[k].len, sg[k].len, q->ring.swap);
		rpx_put16(&table[k].id, 0, q->ring.swap);
		rpx_put16(&table[k].flags, k < n_out ? 0u : RPX_DESC_F_WRITE, q->ring.swap); /* no other flag: 2.8.19-2 */
	}
	rpx_packed_put(q, table_addr, 16u * n, id, RPX_DESC_F_INDIRECT);
	return 0;
}

/* The next used list, its descriptors freed: 1 and *used, 0 where there is none, or the rule that the device broke. */
static inline int rpx_packed_get(struct rpx_packed *q, struct rpx_used *used)
{
	uint16_t id = 0;
	int rc = rpx_packed_used(q, &id, &used->len);
	if (rc <= 0)
		return rc;
	struct rpx_packed_buf *buf = &q->bufs[id];
	buf->next = q->free_head;
	q->free_head = id;
	q->num_free = (uint16_t)(q->num_free + buf->length);
	used->cookie = buf->cookie;
	return 1;
}

/* ------------------------------------------------------------------------------------------------- device ---- */

/* A buffer that was taken, to be walked at once: what is given may overwrite its descriptors. */
struct rpx_packed_chain {
	const struct rpx_packed_desc *table; /* an indirect one, or NULL: the ring */
	uint32_t index;                      /* in the table, or place in the ring */
	uint32_t left;                       /* elements */
	uint32_t bytes_left;
	uint16_t id;
	bool wrote; /* a device-writable element was seen */
};

/*
 * The ids of a list's descriptors mean nothing but the last one's. All of them are available, each in its place, when
 * the first is (2.8.6), so one that is not breaks the queue.
 */
static inline int rpx_packed_list(const struct rpx_packed *q, uint32_t flags, struct rpx_packed_chain *c)
{
	struct rpx_packed_cursor at = q->take;
	uint32_t room = q->ring.num - rpx_packed_distance(&q->ring, q->pub, q->take.at);
	for (c->left = 1; (flags & RPX_DESC_F_NEXT) != 0; c->left++) {
		if (c->left >= room)
			return RPX_E_CHAIN_STEPS;
		rpx_packed_step(&at, &q->ring);
		flags = rpx_packed_flags(q, at.at);
		if (!rpx_packed_is_ours(flags, at.marks))
			return RPX_E_CHAIN_NEXT;
	}
	c->id = rpx_get16(&q->ring.desc[rpx_packed_slot(at.at)].id, q->ring.swap);
	return 0;
}

/*
 * Take the next available buffer: 1 and *c, to be walked before anything is given; 0 where there is none, or the rule
 * that the driver broke. The driver has back only what was published, so no slot of those before it can be available.
 */
RPX_HOT int rpx_packed_pop(struct rpx_packed *q, struct rpx_packed_chain *c)
{
	int rc;
	if (rpx_unlikely(q->broken < 0))
		return q->broken;
	uint32_t flags = rpx_packed_flags(q, q->take.at);
	if (!rpx_packed_is_ours(flags, q->take.marks))
		return 0;
	if (rpx_unlikely(q->take.at == (q->pub ^ RPX_PACKED_WRAP)))
		return rpx_packed_fail(q, RPX_E_AVAIL_IDX);
	if (rpx_unlikely((rc = rpx_packed_list(q, flags, c)) < 0))
		return rpx_packed_fail(q, rc);
	if (rpx_unlikely(c->id >= q->ring.num))
		return rpx_packed_fail(q, RPX_E_AVAIL_HEAD);
	if (rpx_unlikely(q->bufs[c->id].length != 0))
		return rpx_packed_fail(q, RPX_E_AVAIL_TWICE);
	c->table = NULL;
	c->index = q->take.at;
	c->bytes_left = UINT32_MAX;
	c->wrote = false;
	q->bufs[c->id].length = (uint16_t)c->left;
	rpx_packed_jump(&q->take, &q->ring, c->left);
	q->taken++;
	return 1;
}

static inline struct rpx_desc_copy rpx_packed_read(const struct rpx_packed_desc *d, bool swap)
{
	struct rpx_desc_copy copy;
	copy.addr = rpx_get64(&d->addr, swap);
	copy.len = rpx_get32(&d->len, swap);
	copy.flags = rpx_get16(&d->flags, swap);
	copy.next = 0;
	return copy;
}

/* Step into an indirect table; `d` points at it. Its own WRITE flag is ignored, and all of the table's but that (2.8.7). */
static inline int rpx_packed_enter(struct rpx_packed_chain *c, const struct rpx_packed *q, const struct rpx_mem *mem,
				   const struct rpx_desc_copy *d)
{
	if (!q->ring.indirect)
		return RPX_E_INDIRECT_OFF;
	if (q->bufs[c->id].length != 1)
		return RPX_E_INDIRECT_NEXT;
	if (d->len == 0 || d->len % 16u != 0)
		return RPX_E_INDIRECT_LEN;
	if (d->len / 16u > q->ring.num)
		return RPX_E_CHAIN_STEPS;
	/* The table's fields are read as such, so it must be aligned here; no driver makes one that is not. */
	uint8_t *table = rpx_mem_at(mem, d->addr, d->len, RPX_PERM_READ);
	if (table == NULL || ((uintptr_t)table & 7u) != 0)
		return RPX_E_DESC_ADDR;
	c->table = (const struct rpx_packed_desc *)(const void *)table;
	c->index = 0;
	c->left = d->len / 16u;
	return 0;
}

/* The next element: 1 and *seg, 0 at the end, or the rule that the driver broke. */
static inline int rpx_packed_next(struct rpx_packed_chain *c, struct rpx_packed *q, const struct rpx_mem *mem,
				  struct rpx_seg *seg)
{
	const struct rpx_packed_ring *r = &q->ring;
	int rc;
	if (q->broken < 0)
		return q->broken;
	if (c->left == 0)
		return 0;
	struct rpx_desc_copy d;
	if (c->table == NULL) {
		d = rpx_packed_read(&r->desc[rpx_packed_slot(c->index)], r->swap);
		if ((d.flags & RPX_DESC_F_INDIRECT) != 0 && (rc = rpx_packed_enter(c, q, mem, &d)) != 0)
			return rpx_packed_fail(q, rc);
	}
	if (c->table != NULL)
		d = rpx_packed_read(&c->table[c->index++], r->swap);
	else
		c->index = rpx_packed_after(r, c->index, 1);
	c->left--;
	if ((rc = rpx_dev_segment(mem, &d, seg)) != 0)
		return rpx_packed_fail(q, rc);
	if (c->wrote && !seg->write)
		return rpx_packed_fail(q, RPX_E_DESC_ORDER);
	if (seg->len > c->bytes_left)
		return rpx_packed_fail(q, RPX_E_CHAIN_BYTES);
	c->wrote = seg->write;
	c->bytes_left -= seg->len;
	return 1;
}

/* Write the next used descriptor, for `len` bytes in buffer `id`. */
RPX_HOT void rpx_packed_use(struct rpx_packed *q, uint16_t id, uint32_t len)
{
	const struct rpx_packed_ring *r = &q->ring;
	struct rpx_packed_desc *d = &r->desc[rpx_packed_slot(q->give.at)];
	rpx_put32(&d->len, len, r->swap);
	rpx_put16(&d->id, id, r->swap);
	rpx_packed_stage(q, len != 0 ? RPX_DESC_F_WRITE : 0u);
}

/*
 * Stage the used descriptor of buffer `id`, of whose writable bytes the first `len` were written. It must have been
 * popped and not pushed since: RPX_E_INVAL otherwise. The driver sees it after rpx_packed_publish.
 */
RPX_HOT int rpx_packed_push(struct rpx_packed *q, uint16_t id, uint32_t len)
{
	if (rpx_unlikely(q->broken != 0))
		return q->broken;
	if (rpx_unlikely(id >= q->ring.num || q->bufs[id].length == 0))
		return RPX_E_INVAL;
	rpx_packed_use(q, id, len);
	rpx_packed_jump(&q->give, &q->ring, q->bufs[id].length);
	q->given++;
	q->bufs[id].length = 0;
	return 0;
}

/*
 * The memory of the available buffer that is next, where that is one direct descriptor of that direction: a pointer to
 * *len bytes, which may be 0. NULL where it is anything else: rpx_packed_pop and rpx_packed_next tell.
 */
RPX_HOT uint8_t *rpx_packed_peek(const struct rpx_packed *q, const struct rpx_mem *mem, bool write, uint16_t *id,
				 uint32_t *len)
{
	const struct rpx_packed_ring *r = &q->ring;
	const struct rpx_packed_desc *d = &r->desc[rpx_packed_slot(q->take.at)];
	uint32_t flags = rpx_packed_flags(q, q->take.at);
	uint32_t kind = flags & (RPX_DESC_F_NEXT | RPX_DESC_F_INDIRECT | RPX_DESC_F_WRITE);
	if (!rpx_packed_is_ours(flags, q->take.marks))
		return NULL;
	*id = rpx_get16(&d->id, r->swap);
	*len = rpx_get32(&d->len, r->swap);
	if (rpx_unlikely(kind != (write ? RPX_DESC_F_WRITE : 0u) || *id >= r->num || q->bufs[*id].length != 0 ||
			 q->take.at == (q->pub ^ RPX_PACKED_WRAP)))
		return NULL;
	return rpx_mem_at(mem, rpx_get64(&d->addr, r->swap), *len, write ? RPX_PERM_WRITE : RPX_PERM_READ);
}

/* Take the buffer that rpx_packed_peek showed, and stage its used descriptor: rpx_packed_pop and _push in one. */
RPX_HOT void rpx_packed_turn(struct rpx_packed *q, uint16_t id, uint32_t len)
{
	rpx_packed_step(&q->take, &q->ring);
	rpx_packed_use(q, id, len);
	rpx_packed_step(&q->give, &q->ring);
}

/* Remember where a buffer that is held lies: its descriptor may be overwritten. */
static inline void rpx_packed_keep(struct rpx_packed *q, uint16_t id, const struct rpx_seg *seg)
{
	q->bufs[id].ptr = seg->ptr;
	q->bufs[id].len = seg->len;
}

/* How many buffers there are to take, of one descriptor each where this is a device. Reads all of them. */
static inline uint32_t rpx_packed_ahead(const struct rpx_packed *q)
{
	struct rpx_packed_cursor at = q->take;
	uint32_t n = 0, length = 1;
	for (uint32_t seen = 0; seen < q->ring.num; seen += length, n++) {
		if (!rpx_packed_is_ours(rpx_packed_flags(q, at.at), at.marks))
			break;
		if (!q->device) {
			uint16_t id = rpx_get16(&q->ring.desc[rpx_packed_slot(at.at)].id, q->ring.swap);
			if (id >= q->ring.num || q->bufs[id].seq >= q->seq_pub)
				break;
			length = q->bufs[id].length;
		}
		rpx_packed_jump(&at, &q->ring, length);
	}
	return n;
}

#endif
