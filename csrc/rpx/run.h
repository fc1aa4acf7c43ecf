/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Runs: several messages one after the other, the short way, with the state of the ring in a copy. As the address of
 * the copy goes nowhere, a compiler keeps it in registers; the state itself it would have to write out and read back
 * at each access to shared memory.
 *
 *   rpx_rx_run_begin(&run, &rx, max);                rpx_tx_run_begin(&run, &tx, max);
 *   while (rpx_rx_run_peek(&run, &msg)) {            while (rpx_tx_run_turn(&run, src, dst, data, size))
 *           ...                                              ...
 *           rpx_rx_run_turn(&run, &msg);
 *   }
 *   rpx_rx_run_end(&run, &rx);                       rpx_tx_run_end(&run, &tx);
 *
 * A run has at most `max` messages, and no more than the ring has descriptors. It stops before what the short way cannot do. Until it
 * has ended, nothing else may use the queue.
 */
#ifndef RPX_RUN_H
#define RPX_RUN_H

#include "rpmsg.h"

struct rpx_rx_run {
	struct rpx_rx rx;
	struct rpx_drv drv;
	struct rpx_dev dev;
	struct rpx_packed packed;
	uint32_t n;   /* messages so far */
	uint32_t max; /* messages there may be */
};

struct rpx_tx_run {
	struct rpx_tx tx;
	struct rpx_drv drv;
	struct rpx_dev dev;
	struct rpx_packed packed;
	uint32_t n;   /* messages so far */
	uint32_t max; /* messages there may be */
};

/* What stands in a run for the queues that it has not. */
static const struct rpx_drv rpx_no_drv;
static const struct rpx_dev rpx_no_dev;
static const struct rpx_packed rpx_no_packed;

RPX_HOT uint32_t rpx_run_max(int ready, uint32_t max)
{
	return ready < 0 ? 0 : (uint32_t)ready < max ? (uint32_t)ready : max;
}

RPX_HOT void rpx_rx_run_begin(struct rpx_rx_run *run, const struct rpx_rx *rx, uint32_t max)
{
	run->n = 0;
	run->max = rpx_run_max(rpx_rx_look(rx), max);
	RPX_ASSIGN(&run->rx, rx);
	RPX_ASSIGN(&run->drv, rx->drv != NULL ? rx->drv : &rpx_no_drv);
	RPX_ASSIGN(&run->dev, rx->dev != NULL ? rx->dev : &rpx_no_dev);
	RPX_ASSIGN(&run->packed, rx->packed != NULL ? rx->packed : &rpx_no_packed);
}

RPX_HOT bool rpx_rx_run_peek(const struct rpx_rx_run *run, struct rpx_msg *msg)
{
	return run->n < run->max && rpx_rx_peek_at(&run->rx, &run->drv, &run->dev, &run->packed, false, msg);
}

RPX_HOT void rpx_rx_run_turn(struct rpx_rx_run *run, const struct rpx_msg *msg)
{
	run->n++;
	rpx_rx_turn_at(&run->rx, &run->drv, &run->dev, &run->packed, msg);
}

RPX_HOT void rpx_rx_run_end(const struct rpx_rx_run *run, struct rpx_rx *rx)
{
	if (rx->drv != NULL)
		rpx_drv_turned(rx->drv, &run->drv);
	else if (RPX_IS_DEV(rx))
		rpx_dev_turned(rx->dev, &run->dev);
	else
		rpx_packed_turned(rx->packed, &run->packed);
}

RPX_HOT void rpx_tx_run_begin(struct rpx_tx_run *run, const struct rpx_tx *tx, uint32_t max)
{
	run->n = 0;
	run->max = rpx_run_max(rpx_tx_look(tx), max);
	RPX_ASSIGN(&run->tx, tx);
	RPX_ASSIGN(&run->drv, tx->drv != NULL ? tx->drv : &rpx_no_drv);
	RPX_ASSIGN(&run->dev, tx->dev != NULL ? tx->dev : &rpx_no_dev);
	RPX_ASSIGN(&run->packed, tx->packed != NULL ? tx->packed : &rpx_no_packed);
}

RPX_HOT bool rpx_tx_run_turn(struct rpx_tx_run *run, uint32_t src, uint32_t dst, const void *data, size_t size)
{
	if (run->n == run->max || !rpx_tx_turn_at(&run->tx, &run->drv, &run->dev, &run->packed, false, src, dst, data, size))
		return false;
	run->n++;
	return true;
}

RPX_HOT void rpx_tx_run_end(const struct rpx_tx_run *run, struct rpx_tx *tx)
{
	tx->room = run->tx.room;
	if (tx->drv != NULL)
		rpx_drv_turned(tx->drv, &run->drv);
	else if (RPX_IS_DEV(tx))
		rpx_dev_turned(tx->dev, &run->dev);
	else
		rpx_packed_turned(tx->packed, &run->packed);
}

#endif
