/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A whole rpmsg link of 256 buffers of 512 bytes each way in `base`, as the Python bench has it: both its ends, over split
 * or packed rings.
 */
#ifndef BENCH_LINK_H
#define BENCH_LINK_H

#include <stdlib.h>

#include "rpx.h"

#define NUM 256u
#define BUF 512u
#define ADDR 0x80000000u
#define LINK_BYTES (4u * NUM * BUF)

struct end {
	struct rpx_rx rx;
	struct rpx_tx tx;
	union { /* either is of no ring but its own */
		struct rpx_drv drv[2];
		struct rpx_dev dev[2];
		struct rpx_packed packed[2];
	};
};

struct link {
	struct end driver, device;
	struct rpx_region region;
	struct rpx_mem mem;
};

static void must(int rc)
{
	if (rc < 0)
		abort();
}

#define RING_BYTES ((rpx_ring_bytes(NUM, 4096) + 4095u) & ~4095u)

static void link_split(struct link *l, uint8_t *base, uint32_t i)
{
	struct end *a = &l->driver, *b = &l->device;
	struct rpx_ring ring;
	must(rpx_ring_init_legacy(&ring, base, NUM, 4096, RPX_ORDER_SMP, false));
	rpx_ring_zero(&ring);
	rpx_drv_init(&a->drv[i], &ring, calloc(NUM, sizeof(struct rpx_drv_slot)));
	rpx_dev_init(&b->dev[i], &ring, calloc(NUM, sizeof(uint32_t)), 0, 0);
	*(i == 0 ? &a->rx.drv : &a->tx.drv) = &a->drv[i];
	*(i == 0 ? &b->tx.dev : &b->rx.dev) = &b->dev[i];
}

static void link_packed(struct link *l, uint8_t *base, uint32_t i)
{
	struct end *a = &l->driver, *b = &l->device;
	struct rpx_packed_ring ring;
	uint8_t *events = base + 16u * NUM; /* each on a cache line of its own */
	must(rpx_packed_ring_init(&ring, base, events, events + 64, NUM, RPX_ORDER_SMP, false));
	rpx_packed_ring_zero(&ring);
	rpx_packed_init(&a->packed[i], &ring, calloc(NUM, sizeof(struct rpx_packed_buf)), false, RPX_PACKED_START);
	rpx_packed_init(&b->packed[i], &ring, calloc(NUM, sizeof(struct rpx_packed_buf)), true, RPX_PACKED_START);
	*(i == 0 ? &a->rx.packed : &a->tx.packed) = &a->packed[i];
	*(i == 0 ? &b->tx.packed : &b->rx.packed) = &b->packed[i];
}

/* vring 0 carries device to driver, vring 1 driver to device; the buffers follow. */
static void link_open(struct link *l, uint8_t *base, bool packed)
{
	struct end *a = &l->driver, *b = &l->device;
	l->region = (struct rpx_region){ base, ADDR, LINK_BYTES, RPX_PERM_READ | RPX_PERM_WRITE };
	l->mem = (struct rpx_mem){ &l->region, 1 };
	struct rpx_pool in = { base + 2 * RING_BYTES, ADDR + 2 * RING_BYTES, BUF, NUM };
	struct rpx_pool out = { in.base + NUM * BUF, in.addr + NUM * BUF, BUF, NUM };
	a->rx = (struct rpx_rx){ .pool = in };
	a->tx = (struct rpx_tx){ .pool = out, .spare = calloc(NUM, sizeof(uint32_t)) };
	b->rx = (struct rpx_rx){ .mem = &l->mem };
	b->tx = (struct rpx_tx){ .mem = &l->mem, .spare = calloc(NUM, sizeof(uint32_t)) };
	for (uint32_t i = 0; i < 2; i++)
		(packed ? link_packed : link_split)(l, base + i * RING_BYTES, i);
	must(rpx_rx_post(&a->rx));
	rpx_rx_publish(&a->rx);
	rpx_tx_start_drv(&a->tx);
	/* Nobody sleeps here, so nobody wants to be woken. */
	rpx_rx_mute(&a->rx);
	rpx_tx_mute(&a->tx);
	rpx_rx_mute(&b->rx);
	rpx_tx_mute(&b->tx);
}

/* Stage up to `max` messages and publish them together: how many there was room for. */
static inline uint32_t link_send(struct rpx_tx *tx, const uint8_t *data, uint32_t size, uint32_t max)
{
	struct rpx_tx_run run;
	uint32_t n;
	rpx_tx_run_begin(&run, tx, max);
	while (rpx_tx_run_turn(&run, 1024, 1025, data, size))
		;
	rpx_tx_run_end(&run, tx);
	for (n = run.n; n < max && rpx_tx_send(tx, 1024, 1025, data, size) == RPX_TX_BUFFER; n++)
		; /* buffers that were never used before */
	if (n > 0)
		rpx_tx_publish(tx);
	return n;
}

/* The same the other way. */
static inline uint32_t link_receive(struct rpx_rx *rx, uint8_t *data, uint32_t max)
{
	struct rpx_rx_run run;
	struct rpx_msg msg;
	rpx_rx_run_begin(&run, rx, max);
	while (rpx_rx_run_peek(&run, &msg)) {
		rpx_copy_from(data, msg.data, msg.len, RPX_KIND_CACHED);
		rpx_rx_run_turn(&run, &msg);
	}
	rpx_rx_run_end(&run, rx);
	if (run.n > 0)
		rpx_rx_publish(rx);
	return run.n;
}

/* One message, the way of a single call. */
static inline bool link_send1(struct rpx_tx *tx, const uint8_t *data, uint32_t size)
{
	if (rpx_tx_send(tx, 1024, 1025, data, size) != RPX_TX_BUFFER)
		return false;
	rpx_tx_publish(tx);
	return true;
}

static inline bool link_receive1(struct rpx_rx *rx, uint8_t *data)
{
	struct rpx_msg msg;
	if (!rpx_rx_peek(rx, &msg))
		return false;
	rpx_copy_from(data, msg.data, msg.len, RPX_KIND_CACHED);
	rpx_rx_turn(rx, &msg);
	rpx_rx_publish(rx);
	return true;
}

#endif
