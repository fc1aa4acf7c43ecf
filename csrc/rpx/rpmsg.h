/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * rpmsg over a pair of virtqueues, the same for both roles: an rx end that yields messages and takes their buffers
 * back, and a tx end that yields buffers and takes messages. A link is
 *
 *                 vring 0            vring 1
 *     driver      rx: posts buffers  tx: sends in its own buffers
 *     device      tx: fills them     rx: reads them
 *
 * (Linux drivers/rpmsg/virtio_rpmsg_bus.c; OpenAMP's lib/rpmsg/rpmsg_virtio.c agrees.) Like the rings below it, this
 * layer neither waits nor notifies. Not thread-safe.
 */
#ifndef RPX_RPMSG_H
#define RPX_RPMSG_H

#include "packed.h"
#include "split.h"

#define RPX_HDR 16u

/* Packed rings need 64 feature bits, which a resource table does not have: firmware does without them. */
#ifndef RPX_WITH_PACKED
#define RPX_WITH_PACKED __STDC_HOSTED__
#endif

/* Of an end that is no split driver: is it a split device? What is left has a packed ring. */
#define RPX_IS_DEV(end) (!RPX_WITH_PACKED || rpx_likely((end)->dev != NULL))

/* An operation that all queues have, on the queue of an end. */
#define RPX_ON_QUEUE(end, op) \
	((end)->drv != NULL ? rpx_drv_##op((end)->drv) \
	 : RPX_IS_DEV(end) ? rpx_dev_##op((end)->dev) : rpx_packed_##op((end)->packed))

/*
 * Cache maintenance of message buffers, for a CPU that caches them and is not coherent with the peer: override both.
 * Invalidate comes before the first read of a received buffer, clean after the last write to one that is sent. Rings
 * must not be cached there.
 */
#ifndef RPX_INVALIDATE
#define RPX_INVALIDATE(ptr, len) ((void)(ptr), (void)(len))
#endif
#ifndef RPX_CLEAN
#define RPX_CLEAN(ptr, len) ((void)(ptr), (void)(len))
#endif

/*
 * The driver's buffers of one direction: `count` of `size` >= 16 bytes, at `base` here, at `addr` for descriptors.
 * Buffer i stays in descriptor i, or has that id, so of more buffers than descriptors the rest is never used.
 */
struct rpx_pool {
	uint8_t *base;
	uint64_t addr;
	uint32_t size;
	uint32_t count;
};

/* A received message; valid until rpx_rx_done(token). The peer can still change `data`: copy before trusting it. */
struct rpx_msg {
	const uint8_t *data;
	uint32_t src;
	uint32_t dst;
	uint32_t token;
	uint32_t room; /* of the buffer, header included */
	uint16_t len;
	bool copied; /* `data` is private scratch, overwritten by the next rpx_rx_next */
};

/* What rpx_rx_next returns beside errors. After a drop, and before waiting, publish: its buffer is staged to go back. */
enum rpx_rx_result {
	RPX_RX_EMPTY = 0,
	RPX_RX_MESSAGE = 1,
	RPX_RX_SHORT = 2, /* dropped: shorter than the header */
	RPX_RX_LONG = 3,  /* dropped: hdr.len says more than the buffer holds */
};

/* The receiving end. Exactly one of drv, dev and packed is set. */
struct rpx_rx {
	struct rpx_drv *drv;
	struct rpx_dev *dev;
	struct rpx_packed *packed; /* either role's */
	const struct rpx_mem *mem; /* device: what descriptors may point at */
	struct rpx_pool pool;      /* driver: the buffers that were posted */
	uint8_t *scratch;          /* device: a message that is cut into a chain is put together here; may be NULL */
	uint32_t scratch_size;
	bool swap;
	bool whole; /* device: return the descriptor's length as used.len, as OpenAMP's driver needs to see it */
	uint8_t kind; /* enum rpx_kind */
};

RPX_HOT uint64_t rpx_pool_addr(const struct rpx_pool *pool, uint32_t i)
{
	return pool->addr + (uint64_t)i * pool->size;
}

/* Buffers of the pool that a driver's ring has descriptors for. */
static inline uint32_t rpx_pool_usable(const struct rpx_pool *pool, const struct rpx_drv *drv,
				       const struct rpx_packed *packed)
{
	uint32_t num = drv != NULL ? drv->ring.num : packed->ring.num;
	return pool->count < num ? pool->count : num;
}

/*
 * The buffer that is next on a packed ring, not taken yet: its start, where that is one descriptor with room for it; NULL
 * where there is none, or where another function tells what is wrong. `write`: a device is going to.
 */
RPX_HOT uint8_t *rpx_pool_peek(const struct rpx_pool *pool, const struct rpx_packed *q, const struct rpx_mem *mem,
			       bool write, uint16_t *id, uint32_t *room)
{
	if (!q->device)
		return rpx_packed_peek_used(q, id, room) == 1 ? pool->base + (size_t)*id * pool->size : NULL;
	uint8_t *buf = rpx_packed_peek(q, mem, write, id, room);
	return rpx_likely(((uintptr_t)buf & 3u) == 0) ? buf : NULL;
}

/* Driver: post every buffer of the pool that the ring holds. */
static inline int rpx_rx_post(struct rpx_rx *rx)
{
	int rc = 0;
	for (uint32_t i = 0; rc == 0 && i < rpx_pool_usable(&rx->pool, rx->drv, rx->packed); i++) {
		uint64_t addr = rpx_pool_addr(&rx->pool, i);
		if (rx->drv == NULL)
			rc = rpx_packed_post(rx->packed, (uint16_t)i, addr, rx->pool.size, true);
		else if ((rc = rpx_drv_bind(rx->drv, i, addr, true)) == 0)
			rc = rpx_drv_post(rx->drv, (uint16_t)i, rx->pool.size);
	}
	return rc;
}

/* Give a message's buffer back; staged until rpx_rx_publish. */
RPX_HOT int rpx_rx_done(struct rpx_rx *rx, uint32_t token)
{
	if (rx->drv != NULL)
		return rpx_drv_post(rx->drv, (uint16_t)token, rx->pool.size);
	/* A device has written nothing into a readable buffer. The token's upper half is what `whole` returns. */
	if (RPX_IS_DEV(rx))
		return rpx_dev_push(rx->dev, (uint16_t)token, token >> 16);
	if (rx->packed->device)
		return rpx_packed_push(rx->packed, (uint16_t)token, 0);
	return rpx_packed_post(rx->packed, (uint16_t)token, rpx_pool_addr(&rx->pool, token), rx->pool.size, true);
}

/* True: the peer wants a kick. */
RPX_HOT bool rpx_rx_publish(struct rpx_rx *rx)
{
	return RPX_ON_QUEUE(rx, publish);
}

static inline void rpx_rx_mute(struct rpx_rx *rx)
{
	RPX_ON_QUEUE(rx, mute);
}

static inline bool rpx_rx_unmute(struct rpx_rx *rx)
{
	return RPX_ON_QUEUE(rx, unmute);
}

/* Is there something to look at? Reads one index. A thread that spins beside the owner calls it on a copy. */
static inline bool rpx_rx_pending(const struct rpx_rx *rx)
{
	return RPX_ON_QUEUE(rx, pending);
}

static inline uint32_t rpx_rx_num(const struct rpx_rx *rx)
{
	return rx->drv != NULL ? rx->drv->ring.num : RPX_IS_DEV(rx) ? rx->dev->ring.num : rx->packed->ring.num;
}

static inline int rpx_rx_broken(const struct rpx_rx *rx)
{
	return RPX_ON_QUEUE(rx, broken);
}

/* Put a chain together in scratch: the bytes gathered, or the rule that was broken. */
static inline int64_t rpx_rx_gather(struct rpx_rx *rx, uint16_t head)
{
	struct rpx_chain c;
	struct rpx_seg seg;
	uint32_t n = 0;
	int rc;
	rpx_chain_begin(&c, rx->dev, head, rx->scratch_size);
	while ((rc = rpx_chain_next(&c, rx->dev, rx->mem, &seg)) == 1) {
		RPX_INVALIDATE(seg.ptr, seg.len);
		rpx_copy_from(rx->scratch + n, seg.ptr, seg.len, (enum rpx_kind)rx->kind);
		n += seg.len;
	}
	return rc < 0 ? rc : (int64_t)n;
}

/* The header, each field read once; reserved and flags are not looked at, as in Linux. */
RPX_HOT int rpx_rx_parse(const struct rpx_rx *rx, const uint8_t *buf, struct rpx_msg *msg)
{
	const struct rpx_rpmsg_hdr *h = (const struct rpx_rpmsg_hdr *)(const void *)buf;
	if (rpx_unlikely(msg->room < RPX_HDR))
		return RPX_RX_SHORT;
	msg->src = rpx_get32(&h->src, rx->swap);
	msg->dst = rpx_get32(&h->dst, rx->swap);
	msg->len = rpx_get16(&h->len, rx->swap);
	msg->data = buf + RPX_HDR;
	return rpx_likely(msg->len <= msg->room - RPX_HDR) ? RPX_RX_MESSAGE : RPX_RX_LONG;
}

/*
 * The next buffer with a message in it: RPX_RX_MESSAGE with its start in *buf, its room and its token in *msg, RPX_RX_EMPTY
 * or the rule that the peer broke.
 */
RPX_HOT int rpx_rx_take_drv(struct rpx_rx *rx, struct rpx_msg *msg, const uint8_t **buf)
{
	uint16_t id = 0;
	int rc = rx->drv != NULL ? rpx_drv_used(rx->drv, &id, &msg->room) : rpx_packed_used(rx->packed, &id, &msg->room);
	if (rc <= 0)
		return rc;
	*buf = rx->pool.base + (size_t)id * rx->pool.size;
	RPX_INVALIDATE(*buf, msg->room);
	msg->token = id;
	return RPX_RX_MESSAGE;
}

RPX_HOT int rpx_rx_take_dev(struct rpx_rx *rx, struct rpx_msg *msg, const uint8_t **buf)
{
	struct rpx_seg seg;
	uint16_t head = 0;
	int rc;
	if ((rc = rpx_dev_pop(rx->dev, &head)) <= 0)
		return rc;
	if ((rc = rpx_dev_single(rx->dev, rx->mem, head, &seg)) < 0)
		return rc;
	if (rpx_likely(rc == 1)) {
		*buf = seg.ptr;
		msg->room = seg.len;
		RPX_INVALIDATE(*buf, msg->room);
	} else {
		if (rx->scratch == NULL)
			return rpx_dev_fail(rx->dev, RPX_E_CHAIN_BYTES);
		int64_t n = rpx_rx_gather(rx, head);
		if (n < 0)
			return (int)n;
		*buf = rx->scratch;
		msg->room = (uint32_t)n;
		msg->copied = true;
	}
	msg->token = head;
	if (rx->whole)
		msg->token |= (msg->room <= 0xffffu ? msg->room : 0xffffu) << 16;
	if (rpx_unlikely(((uintptr_t)*buf & 3u) != 0))
		return rpx_dev_fail(rx->dev, RPX_E_DESC_ADDR); /* header fields are read as such */
	return RPX_RX_MESSAGE;
}

static inline int rpx_rx_take_packed(struct rpx_rx *rx, struct rpx_msg *msg, const uint8_t **buf)
{
	struct rpx_packed *q = rx->packed;
	struct rpx_packed_chain c;
	struct rpx_seg seg;
	int rc;
	if (!q->device)
		return rpx_rx_take_drv(rx, msg, buf);
	if ((rc = rpx_packed_pop(q, &c)) <= 0)
		return rc;
	if ((rc = rpx_packed_next(&c, q, rx->mem, &seg)) != 1)
		return rc;
	RPX_INVALIDATE(seg.ptr, seg.len);
	*buf = seg.ptr;
	msg->room = seg.len;
	msg->copied = c.left > 0;
	if (msg->copied) { /* it is put together in scratch */
		if (seg.len > rx->scratch_size)
			return rpx_packed_fail(q, RPX_E_CHAIN_BYTES);
		c.bytes_left = rx->scratch_size - seg.len;
		rpx_copy_from(rx->scratch, seg.ptr, seg.len, (enum rpx_kind)rx->kind);
		while ((rc = rpx_packed_next(&c, q, rx->mem, &seg)) == 1) {
			RPX_INVALIDATE(seg.ptr, seg.len);
			rpx_copy_from(rx->scratch + msg->room, seg.ptr, seg.len, (enum rpx_kind)rx->kind);
			msg->room += seg.len;
		}
		if (rc < 0)
			return rc;
		*buf = rx->scratch;
	}
	msg->token = c.id;
	return rpx_likely(((uintptr_t)*buf & 3u) == 0) ? RPX_RX_MESSAGE : rpx_packed_fail(q, RPX_E_DESC_ADDR);
}

/* The next message. A dropped one has given its buffer back. Negative: the rule that the peer broke. */
RPX_HOT int rpx_rx_next(struct rpx_rx *rx, struct rpx_msg *msg)
{
	const uint8_t *buf = NULL;
	msg->copied = false;
	msg->room = 0;
	int rc = rx->drv != NULL ? rpx_rx_take_drv(rx, msg, &buf)
		 : RPX_IS_DEV(rx) ? rpx_rx_take_dev(rx, msg, &buf) : rpx_rx_take_packed(rx, msg, &buf);
	if (rc <= 0)
		return rc;
	rc = rpx_rx_parse(rx, buf, msg);
	if (rpx_unlikely(rc != RPX_RX_MESSAGE)) {
		int done = rpx_rx_done(rx, msg->token);
		return done < 0 ? done : rc;
	}
	return rc;
}

/*
 * The short way, for a message that is whole in one buffer, which goes back at once:
 *
 *   if (rpx_rx_peek(&rx, &msg)) {
 *           ...
 *           rpx_rx_turn(&rx, &msg);
 *   } else if (rpx_rx_next(&rx, &msg) == RPX_RX_MESSAGE) ...
 *
 * Peeking takes nothing: what it cannot show is left to rpx_rx_next, which reads it afresh and says what is wrong. The
 * functions whose names end in _at work on the state they are given, the end's own or a copy of it (run.h).
 */

/* How many messages there may be to take; negative: the rule that the peer broke. */
RPX_HOT int rpx_rx_look(const struct rpx_rx *rx)
{
	return RPX_ON_QUEUE(rx, look);
}

RPX_HOT bool rpx_rx_peek_at(const struct rpx_rx *rx, const struct rpx_drv *drv, const struct rpx_dev *dev,
			    const struct rpx_packed *packed, bool look, struct rpx_msg *msg)
{
	const uint8_t *buf;
	uint16_t id = 0;
	if (rx->drv != NULL) {
		if (look && rpx_drv_look(rx->drv) <= 0)
			return false;
		if (rpx_unlikely(rpx_drv_peek(drv, &id, &msg->room) != 0))
			return false;
		buf = rx->pool.base + (size_t)id * rx->pool.size;
	} else if (RPX_IS_DEV(rx)) {
		if (look && rpx_dev_look(rx->dev) <= 0)
			return false;
		if (rpx_unlikely(rpx_dev_peek(dev, &id) != 0))
			return false;
		buf = rpx_dev_buffer(dev, rx->mem, id, false, &msg->room);
		if (rpx_unlikely(buf == NULL || ((uintptr_t)buf & 3u) != 0))
			return false;
	} else {
		buf = rpx_pool_peek(&rx->pool, packed, rx->mem, false, &id, &msg->room);
		if (buf == NULL)
			return false;
	}
	RPX_INVALIDATE(buf, msg->room);
	msg->token = id;
	msg->copied = false;
	return rpx_likely(rpx_rx_parse(rx, buf, msg) == RPX_RX_MESSAGE);
}

/* The message that is next, not taken yet. */
RPX_HOT bool rpx_rx_peek(const struct rpx_rx *rx, struct rpx_msg *msg)
{
	return rpx_rx_peek_at(rx, rx->drv, rx->dev, rx->packed, true, msg);
}

RPX_HOT void rpx_rx_turn_at(const struct rpx_rx *rx, struct rpx_drv *drv, struct rpx_dev *dev,
			    struct rpx_packed *packed, const struct rpx_msg *msg)
{
	if (rx->drv != NULL)
		rpx_drv_turn(drv, (uint16_t)msg->token, rx->pool.size);
	else if (RPX_IS_DEV(rx))
		rpx_dev_turn(dev, (uint16_t)msg->token, rx->whole ? msg->room : 0);
	else if (packed->device)
		rpx_packed_turn(packed, (uint16_t)msg->token, 0);
	else
		rpx_packed_turn_used(packed, (uint16_t)msg->token, rpx_pool_addr(&rx->pool, msg->token), rx->pool.size, true);
}

/* Take the message that rpx_rx_peek showed, and give its buffer back; staged until rpx_rx_publish. */
RPX_HOT void rpx_rx_turn(const struct rpx_rx *rx, const struct rpx_msg *msg)
{
	rpx_rx_turn_at(rx, rx->drv, rx->dev, rx->packed, msg);
}

/* The sending end. Exactly one of drv, dev and packed is set. */
struct rpx_tx {
	struct rpx_drv *drv;
	struct rpx_dev *dev;
	struct rpx_packed *packed; /* either role's */
	const struct rpx_mem *mem; /* device: what descriptors may point at */
	struct rpx_pool pool;      /* driver: own buffers */
	uint32_t *spare;           /* buffers handed back unsent: [pool.count] for a driver, [num] for a device */
	uint32_t n_spare;
	uint32_t fresh; /* driver: buffers from here on were never used */
	uint32_t room;  /* payload that the buffer seen last had room for; 0: none was seen yet */
	bool swap;
	bool whole; /* device: return the buffer's length as used.len: OpenAMP's driver up to 2023.10 posts it so again */
	uint8_t kind;
};

/* A buffer to send in; `data` has room for `cap` bytes of payload. The peer can still see and change it. */
struct rpx_txbuf {
	uint8_t *data;
	uint32_t cap;
	uint32_t token;
};

/* What rpx_tx_get returns beside errors. Publish before waiting: it may have given back buffers too short to use. */
enum rpx_tx_result {
	RPX_TX_NONE = 0, /* no buffer until the peer gives one back */
	RPX_TX_BUFFER = 1,
	RPX_TX_LONG = 2, /* rpx_tx_send only: the message does not fit tx->room */
};

RPX_HOT bool rpx_tx_publish(struct rpx_tx *tx)
{
	return RPX_ON_QUEUE(tx, publish);
}

static inline void rpx_tx_mute(struct rpx_tx *tx)
{
	RPX_ON_QUEUE(tx, mute);
}

static inline bool rpx_tx_unmute(struct rpx_tx *tx)
{
	return RPX_ON_QUEUE(tx, unmute);
}

/* Has the peer given buffers back that were not looked at yet? Reads one index, as rpx_rx_pending does. */
static inline bool rpx_tx_pending(const struct rpx_tx *tx)
{
	return RPX_ON_QUEUE(tx, pending);
}

/* Buffers that a device finds posted before it has sent anything: for rpx_tx_outstanding. */
static inline uint32_t rpx_tx_posted(const struct rpx_tx *tx)
{
	if (RPX_IS_DEV(tx))
		return rpx_idx_diff(rpx_ring_avail_idx(&tx->dev->ring), tx->dev->used_pub);
	return rpx_packed_ahead(tx->packed);
}

/*
 * Messages that were sent and that the peer has not taken yet, as far as this role can see: a driver by what is used, a
 * device by what is posted again; `posted` is what rpx_tx_posted said at first.
 */
static inline uint32_t rpx_tx_outstanding(const struct rpx_tx *tx, uint32_t posted)
{
	uint32_t n;
	if (tx->drv != NULL)
		return rpx_idx_diff(tx->drv->avail_pub, rpx_ring_used_idx(&tx->drv->ring));
	if (RPX_IS_DEV(tx))
		n = (uint16_t)(tx->dev->used_pub + posted - rpx_ring_avail_idx(&tx->dev->ring));
	else /* a packed ring; a driver's `posted` is 0 */
		n = tx->packed->given + posted - tx->packed->taken - rpx_packed_ahead(tx->packed);
	return n <= RPX_QUEUE_MAX ? n : 0; /* fewer than none: those that one before this device had sent were taken, too */
}

static inline int rpx_tx_broken(const struct rpx_tx *tx)
{
	return RPX_ON_QUEUE(tx, broken);
}

/* Payload that a buffer of `size` >= 16 bytes has room for. */
static inline uint32_t rpx_room(uint32_t size)
{
	return size - RPX_HDR <= 0xffffu ? size - RPX_HDR : 0xffffu;
}

/* Driver: a buffer that was handed back unsent; else the oldest that the device has used; else one never used. */
RPX_HOT int rpx_tx_get_drv(struct rpx_tx *tx, struct rpx_txbuf *buf)
{
	uint16_t id = 0;
	uint32_t len;
	int rc;
	if (rpx_unlikely(tx->n_spare > 0))
		id = (uint16_t)tx->spare[--tx->n_spare];
	else if ((rc = tx->drv != NULL ? rpx_drv_used(tx->drv, &id, &len) : rpx_packed_used(tx->packed, &id, &len)) < 0)
		return rc;
	else if (rc == 0) {
		if (tx->fresh >= rpx_pool_usable(&tx->pool, tx->drv, tx->packed))
			return RPX_TX_NONE;
		id = (uint16_t)tx->fresh++;
	}
	buf->data = tx->pool.base + (size_t)id * tx->pool.size + RPX_HDR;
	buf->cap = tx->room;
	buf->token = id;
	return RPX_TX_BUFFER;
}

/* Driver: before the first rpx_tx_get, once its queue, pool and spare are set. */
static inline void rpx_tx_start_drv(struct rpx_tx *tx)
{
	tx->n_spare = tx->fresh = 0;
	tx->room = rpx_room(tx->pool.size);
	for (uint32_t i = 0; tx->drv != NULL && i < rpx_pool_usable(&tx->pool, tx->drv, NULL); i++)
		rpx_drv_bind(tx->drv, i, rpx_pool_addr(&tx->pool, i), false);
}

/* Device: the next buffer that the driver posted. One too short for the header is given back empty. */
RPX_HOT int rpx_tx_get_dev(struct rpx_tx *tx, struct rpx_txbuf *buf)
{
	for (uint32_t tries = 0; tries < tx->dev->ring.num; tries++) {
		struct rpx_seg seg;
		uint16_t head = 0;
		int rc = 1;
		if (tx->n_spare > 0)
			head = (uint16_t)tx->spare[--tx->n_spare];
		else if ((rc = rpx_dev_pop(tx->dev, &head)) <= 0)
			return rc;
		if ((rc = rpx_dev_single(tx->dev, tx->mem, head, &seg)) < 0)
			return rc;
		if (rc == 0) { /* a chain: its first element is used if it is writable, and nothing else */
			struct rpx_chain c;
			rpx_chain_begin(&c, tx->dev, head, UINT32_MAX);
			if ((rc = rpx_chain_next(&c, tx->dev, tx->mem, &seg)) < 0)
				return rc;
		}
		if (!seg.write)
			return rpx_dev_fail(tx->dev, RPX_E_DESC_READONLY);
		if (rpx_unlikely(((uintptr_t)seg.ptr & 3u) != 0))
			return rpx_dev_fail(tx->dev, RPX_E_DESC_ADDR);
		if (rpx_likely(seg.len >= RPX_HDR)) {
			buf->data = seg.ptr + RPX_HDR;
			buf->cap = tx->room = rpx_room(seg.len);
			buf->token = head;
			return RPX_TX_BUFFER;
		}
		if ((rc = rpx_dev_push(tx->dev, head, 0)) < 0)
			return rc;
	}
	return RPX_TX_NONE;
}

/* A packed ring's device, where a buffer that was handed back has no descriptor any more. */
static inline int rpx_tx_get_packed(struct rpx_tx *tx, struct rpx_txbuf *buf)
{
	struct rpx_packed *q = tx->packed;
	for (uint32_t tries = 0; tries < q->ring.num; tries++) {
		struct rpx_packed_chain c;
		struct rpx_seg seg;
		int rc;
		if (tx->n_spare > 0) {
			c.id = (uint16_t)tx->spare[--tx->n_spare];
			seg.ptr = q->bufs[c.id].ptr;
			seg.len = q->bufs[c.id].len;
		} else {
			if ((rc = rpx_packed_pop(q, &c)) <= 0 || (rc = rpx_packed_next(&c, q, tx->mem, &seg)) < 0)
				return rc;
			if (!seg.write)
				return rpx_packed_fail(q, RPX_E_DESC_READONLY);
			if (rpx_unlikely(((uintptr_t)seg.ptr & 3u) != 0))
				return rpx_packed_fail(q, RPX_E_DESC_ADDR);
			rpx_packed_keep(q, c.id, &seg);
		}
		if (rpx_likely(seg.len >= RPX_HDR)) {
			buf->data = seg.ptr + RPX_HDR;
			buf->cap = tx->room = rpx_room(seg.len);
			buf->token = c.id;
			return RPX_TX_BUFFER;
		}
		if ((rc = rpx_packed_push(q, c.id, 0)) < 0)
			return rc;
	}
	return RPX_TX_NONE;
}

/* A buffer to fill: RPX_TX_BUFFER, RPX_TX_NONE, or the rule that the peer broke. */
RPX_HOT int rpx_tx_get(struct rpx_tx *tx, struct rpx_txbuf *buf)
{
	if (tx->drv != NULL)
		return rpx_tx_get_drv(tx, buf);
	if (RPX_IS_DEV(tx))
		return rpx_tx_get_dev(tx, buf);
	return tx->packed->device ? rpx_tx_get_packed(tx, buf) : rpx_tx_get_drv(tx, buf);
}

/* Hand a buffer back unsent; it is the next one rpx_tx_get returns. */
static inline void rpx_tx_unget(struct rpx_tx *tx, const struct rpx_txbuf *buf)
{
	tx->spare[tx->n_spare++] = buf->token;
}

RPX_HOT void rpx_tx_header(const struct rpx_tx *tx, uint8_t *buf, uint32_t src, uint32_t dst, uint32_t len)
{
	struct rpx_rpmsg_hdr *h = (struct rpx_rpmsg_hdr *)(void *)buf;
	rpx_put32(&h->src, src, tx->swap);
	rpx_put32(&h->dst, dst, tx->swap);
	rpx_put32(&h->reserved, 0, tx->swap);
	rpx_put16(&h->len, (uint16_t)len, tx->swap);
	rpx_put16(&h->flags, 0, tx->swap);
	RPX_CLEAN(h, RPX_HDR + len);
}

/* Write the header before buf->data and stage the message; `len` is at most buf->cap. Sent by rpx_tx_publish. */
RPX_HOT int rpx_tx_put(struct rpx_tx *tx, const struct rpx_txbuf *buf, uint32_t src, uint32_t dst, uint32_t len)
{
	rpx_tx_header(tx, buf->data - RPX_HDR, src, dst, len);
	if (tx->drv != NULL)
		return rpx_drv_post(tx->drv, (uint16_t)buf->token, RPX_HDR + len);
	if (RPX_IS_DEV(tx))
		return rpx_dev_push(tx->dev, (uint16_t)buf->token, RPX_HDR + (tx->whole ? buf->cap : len));
	if (tx->packed->device)
		return rpx_packed_push(tx->packed, (uint16_t)buf->token, RPX_HDR + len);
	return rpx_packed_post(tx->packed, (uint16_t)buf->token, rpx_pool_addr(&tx->pool, buf->token), RPX_HDR + len, false);
}

RPX_HOT int rpx_tx_look(const struct rpx_tx *tx)
{
	return RPX_ON_QUEUE(tx, look);
}

RPX_HOT bool rpx_tx_turn_at(struct rpx_tx *tx, struct rpx_drv *drv, struct rpx_dev *dev, struct rpx_packed *packed,
			    bool look, uint32_t src, uint32_t dst, const void *data, size_t size)
{
	uint8_t *buf;
	uint32_t len;
	uint16_t id = 0;
	if (tx->drv != NULL) {
		if (look && rpx_drv_look(drv) <= 0)
			return false;
		if (rpx_unlikely(rpx_drv_peek(drv, &id, &len) != 0))
			return false;
		buf = tx->pool.base + (size_t)id * tx->pool.size;
	} else if (RPX_IS_DEV(tx)) {
		if (look && rpx_dev_look(dev) <= 0)
			return false;
		if (rpx_unlikely(rpx_dev_peek(dev, &id) != 0))
			return false;
		buf = rpx_dev_buffer(dev, tx->mem, id, true, &len);
		if (rpx_unlikely(buf == NULL || ((uintptr_t)buf & 3u) != 0 || len < RPX_HDR))
			return false;
		tx->room = rpx_room(len);
	} else {
		buf = rpx_pool_peek(&tx->pool, packed, tx->mem, true, &id, &len);
		if (rpx_unlikely(buf == NULL || (packed->device && len < RPX_HDR)))
			return false;
		if (packed->device)
			tx->room = rpx_room(len);
	}
	if (rpx_unlikely(size > tx->room))
		return false;
	rpx_copy_to(buf + RPX_HDR, data, size, (enum rpx_kind)tx->kind);
	rpx_tx_header(tx, buf, src, dst, (uint32_t)size);
	if (tx->drv != NULL)
		rpx_drv_turn(drv, id, RPX_HDR + (uint32_t)size);
	else if (RPX_IS_DEV(tx))
		rpx_dev_turn(dev, id, tx->whole ? len : RPX_HDR + (uint32_t)size);
	else if (packed->device)
		rpx_packed_turn(packed, id, RPX_HDR + (uint32_t)size);
	else
		rpx_packed_turn_used(packed, id, rpx_pool_addr(&tx->pool, id), RPX_HDR + (uint32_t)size, false);
	return true;
}

/*
 * The short way out: stage a copy of `size` bytes in the buffer that the peer gave back next. False where there is
 * none, or none in one piece with room for them; rpx_tx_get tells.
 */
RPX_HOT bool rpx_tx_turn(struct rpx_tx *tx, uint32_t src, uint32_t dst, const void *data, size_t size)
{
	return rpx_tx_turn_at(tx, tx->drv, tx->dev, tx->packed, true, src, dst, data, size);
}

/* Stage a copy of `size` bytes: RPX_TX_BUFFER when done, RPX_TX_NONE, RPX_TX_LONG, or the rule that the peer broke. */
RPX_HOT int rpx_tx_send(struct rpx_tx *tx, uint32_t src, uint32_t dst, const void *data, size_t size)
{
	struct rpx_txbuf buf;
	if (rpx_likely(rpx_tx_turn(tx, src, dst, data, size)))
		return RPX_TX_BUFFER;
	int rc = rpx_tx_get(tx, &buf);
	if (rpx_unlikely(rc != RPX_TX_BUFFER))
		return rc;
	if (rpx_unlikely(size > buf.cap)) {
		rpx_tx_unget(tx, &buf);
		return RPX_TX_LONG;
	}
	rpx_copy_to(buf.data, data, size, (enum rpx_kind)tx->kind);
	rc = rpx_tx_put(tx, &buf, src, dst, (uint32_t)size);
	return rpx_likely(rc == 0) ? RPX_TX_BUFFER : rc;
}

/*
 * The name service. Encode into 40 bytes; `name` is cut at 31 characters and padded with zeros.
 */
static inline void rpx_ns_encode(struct rpx_rpmsg_ns *ns, const char *name, uint32_t addr, bool destroy, bool swap)
{
	uint32_t i = 0;
	for (; i < RPX_NS_NAME - 1u && name[i] != '\0'; i++)
		ns->name[i] = (uint8_t)name[i];
	for (; i < RPX_NS_NAME; i++)
		ns->name[i] = 0;
	rpx_put32(&ns->addr, addr, swap);
	rpx_put32(&ns->flags, destroy ? RPX_NS_DESTROY : RPX_NS_CREATE, swap);
}

/* Length of the name in a private copy of a name-service message: 0 where it is empty or has no NUL. */
static inline uint32_t rpx_ns_name_len(const struct rpx_rpmsg_ns *ns)
{
	for (uint32_t i = 0; i < RPX_NS_NAME; i++) {
		if (ns->name[i] == 0)
			return i;
	}
	return 0;
}

#endif
