/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A driver takes up the rings of a driver that died: same table, same buffers. Nothing is written before all is
 * checked, and each shared field is read once.
 *
 * Every rx buffer that was taken is posted again before the next index is published, so all of them are the device's but
 * those behind used.idx. A message that was taken and not yet given back comes again: at least once. Of the tx ring the
 * buffers between used.idx and avail.idx are in flight, as the device uses them in order; all known ones do. Where one
 * does not, rpx_drv_used finds out, and the queue is broken.
 */
#ifndef RPX_RESUME_H
#define RPX_RESUME_H

#include "rpmsg.h"

/* The length in descriptor `id`, 1 to `size`; 0 where it is not, or the descriptor not bound to its buffer so. */
static inline uint32_t rpx_resume_len(const struct rpx_drv *q, uint32_t id, uint64_t addr, uint32_t size,
				      uint16_t flags)
{
	struct rpx_desc_copy d = rpx_desc_read(rpx_ring_desc(&q->ring, id), q->ring.swap);
	return d.addr == addr && d.flags == flags && d.len <= size ? d.len : 0;
}

/* Take the last `n` published heads to be in flight. NULL, or what is wrong; then the queue must not be used. */
static inline const char *rpx_resume_flying(struct rpx_drv *q, uint16_t n, const struct rpx_pool *pool, uint16_t flags)
{
	for (uint16_t i = n; i > 0; i--) {
		uint16_t at = rpx_idx_diff(q->avail_idx, i);
		uint16_t head = rpx_get16(rpx_ring_avail_entry(&q->ring, at), q->ring.swap);
		if (head >= q->ring.num || head >= pool->count)
			return "an available entry is outside the descriptor table";
		struct rpx_drv_slot *slot = &q->slots[head];
		if (slot->seq != RPX_IDLE)
			return "a buffer is available twice";
		slot->limit = rpx_resume_len(q, head, pool->addr + (uint64_t)head * pool->size, pool->size, flags);
		if (slot->limit == 0)
			return "a descriptor is not that of this host's buffer";
		slot->length = 1;
		slot->seq = q->seq++;
	}
	q->seq_pub = q->seq;
	return NULL;
}

/* In place of rpx_rx_post. NULL, or what is wrong. */
static inline const char *rpx_rx_resume(struct rpx_rx *rx)
{
	struct rpx_drv *q = rx->drv;
	uint16_t n = (uint16_t)(rx->pool.count < q->ring.num ? rx->pool.count : q->ring.num);
	q->avail_idx = q->avail_pub = rpx_ring_avail_idx(&q->ring);
	q->last_used = q->used_seen = rpx_idx_diff(q->avail_idx, n);
	if (rpx_idx_diff(rpx_ring_used_idx(&q->ring), q->last_used) > n)
		return "used.idx is not between the buffers that were taken and those that were given";
	return rpx_resume_flying(q, n, &rx->pool, RPX_DESC_F_WRITE);
}

/* In place of rpx_tx_start_drv. NULL, or what is wrong. */
static inline const char *rpx_tx_resume(struct rpx_tx *tx)
{
	struct rpx_drv *q = tx->drv;
	uint32_t count = tx->pool.count < q->ring.num ? tx->pool.count : q->ring.num;
	q->avail_idx = q->avail_pub = rpx_ring_avail_idx(&q->ring);
	q->last_used = q->used_seen = rpx_ring_used_idx(&q->ring);
	uint16_t n = rpx_idx_diff(q->avail_idx, q->last_used);
	if (n > count)
		return "used.idx is ahead of avail.idx, or too far behind";
	const char *wrong = rpx_resume_flying(q, n, &tx->pool, 0);
	if (wrong != NULL)
		return wrong;
	tx->n_spare = 0;
	tx->room = rpx_room(tx->pool.size);
	tx->fresh = count;
	for (uint32_t i = count; i > 0; i--) {
		if (q->slots[i - 1u].seq != RPX_IDLE)
			continue;
		rpx_drv_bind(q, i - 1u, tx->pool.addr + (uint64_t)(i - 1u) * tx->pool.size, false);
		tx->spare[tx->n_spare++] = i - 1u;
	}
	return NULL;
}

#endif
