/* SPDX-License-Identifier: BSD-3-Clause */
/* Cortex-M4: vectors, reset, faults. */
#include "board.h"

extern uint32_t board_data_load[], board_data_start[], board_data_end[], board_bss_start[], board_bss_end[];
extern uint32_t board_stack_top[];

void board_main(void);
void board_reset(void);

static void board_exception(void)
{
	uint32_t ipsr;
	__asm__ volatile("mrs %0, ipsr" : "=r"(ipsr));
	BOARD_MAILBOX->fault = BOARD_EXCEPTION + (ipsr & 0x1ffu);
	for (;;)
		__asm__ volatile("wfi");
}

__attribute__((noreturn, used)) void board_reset(void)
{
	/* Volatile: these loops must not become calls of memcpy and memset. */
	const volatile uint32_t *from = board_data_load;
	for (volatile uint32_t *to = board_data_start; to < board_data_end;)
		*to++ = *from++;
	for (volatile uint32_t *to = board_bss_start; to < board_bss_end;)
		*to++ = 0;
	board_main();
	for (;;)
		__asm__ volatile("wfi");
}

typedef void (*board_vector)(void);

/* The initial stack pointer stands before these, see m4.ld: reset, NMI, then the faults and system exceptions. */
__attribute__((section(".vectors"), used)) static const board_vector board_vectors[15] = {
	board_reset,     board_exception, board_exception, board_exception, board_exception,
	board_exception, board_exception, board_exception, board_exception, board_exception,
	board_exception, board_exception, board_exception, board_exception, board_exception,
};
