/* SPDX-License-Identifier: BSD-3-Clause */
/* The application RPX_APP on a board. */
#include "board.h"
#include "cpu.h"

#include "remote/remote.h"

#define MAIN_STATE_SIZE 256u

static struct rpx_remote main_remote;
static uint64_t main_state[MAIN_STATE_SIZE / 8u];

/* Only the host writes it. Not const: the compiler must not believe that it stays as it is. */
__attribute__((section(".resource_table"), used)) struct rpx_remote_table board_table =
	RPX_REMOTE_TABLE(BOARD_TRACE, BOARD_TRACE_SIZE);

static void board_hang(void *ctx)
{
	(void)ctx;
	for (;;)
		__asm__ volatile("" ::: "memory");
}

static void board_fault(void *ctx, uint32_t cause)
{
	if (cause == RPX_FAULT_UNDEFINED)
		cpu_undefined();
	if (cause == RPX_FAULT_ACCESS)
		(void)*(volatile uint32_t *)(uintptr_t)BOARD_NOWHERE;
	board_give_up(cause);
	board_hang(ctx);
}

void board_main(void)
{
	static const struct rpx_port port = {NULL, board_kick, board_poll, board_wait, board_ack, board_fault, board_hang};
	const struct rpx_grant grant = {(uint8_t *)(uintptr_t)BOARD_SHM, BOARD_SHM, board_shm_address(), BOARD_SHM_SIZE};
	board_init();
	if (RPX_APP.state_size > sizeof(main_state))
		board_fault(NULL, RPX_FAULT_FATAL);
	rpx_remote_init(&main_remote, &RPX_APP, main_state, &port, &board_table, &grant, 1,
			(char *)(uintptr_t)BOARD_TRACE, BOARD_TRACE_SIZE);
	rpx_remote_run(&main_remote);
}
