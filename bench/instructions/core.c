/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Messages through the C core, one thread at both ends, for counting instructions: `core NAME...` prints nothing.
 * Between the cases it calls getppid(), at which callgrind is told to write down what it has counted.
 */
#include <unistd.h>

#include "../limits/link.h"

#define BATCH 64u
#define ROUNDS 64u

static uint8_t memory[LINK_BYTES] __attribute__((aligned(4096)));
static uint8_t in[BUF], out[BUF];

static void single(struct rpx_tx *tx, struct rpx_rx *rx, uint32_t size)
{
	for (uint32_t n = 0; n < BATCH; n++)
		must(link_send1(tx, out, size) && link_receive1(rx, in) ? 0 : -1);
}

static void batch(struct rpx_tx *tx, struct rpx_rx *rx, uint32_t size)
{
	must(link_send(tx, out, size, BATCH) == BATCH && link_receive(rx, in, BATCH) == BATCH ? 0 : -1);
}

static void measure(void (*way)(struct rpx_tx *, struct rpx_rx *, uint32_t), struct rpx_tx *tx, struct rpx_rx *rx,
		    uint32_t size)
{
	for (uint32_t n = 0; n < 2 * NUM; n += BATCH) /* until each buffer has been used */
		batch(tx, rx, size);
	(void)getppid();
	for (uint32_t round = 0; round < ROUNDS; round++)
		way(tx, rx, size);
	(void)getppid();
}

/* The order is that of CORE in __init__.py. */
int main(void)
{
	static const uint32_t sizes[] = { 64, 496 };
	static struct link l;
	for (int packed = 0; packed < 2; packed++) {
		link_open(&l, memory, packed);
		for (uint32_t i = 0; i < 2; i++) {
			measure(single, &l.driver.tx, &l.device.rx, sizes[i]);
			measure(single, &l.device.tx, &l.driver.rx, sizes[i]);
			measure(batch, &l.driver.tx, &l.device.rx, sizes[i]);
			measure(batch, &l.device.tx, &l.driver.rx, sizes[i]);
		}
	}
	return 0;
}
