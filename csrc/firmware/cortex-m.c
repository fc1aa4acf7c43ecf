/* SPDX-License-Identifier: BSD-3-Clause */
/* Cortex-M: vectors, reset, faults. Registers are reported as r0 to r12, sp, lr, pc, xpsr. */
#include "board.h"
#include "cpu.h"
#include "remote/remote.h"

extern uint32_t board_data_load[], board_data_start[], board_data_end[], board_bss_start[], board_bss_end[];
extern uint32_t board_stack_top[];

#define SCB_CFSR (*(const volatile uint32_t *)0xe000ed28u)
#define SCB_MMFAR (*(const volatile uint32_t *)0xe000ed34u)
#define SCB_BFAR (*(const volatile uint32_t *)0xe000ed38u)
#define CFSR_ACCESS 0x00000703u /* data and instructions, by the MPU and on the bus */
#define CFSR_MMFAR_VALID 0x00000080u
#define CFSR_BFAR_VALID 0x00008000u
#define CFSR_UNDEFINED 0x00010000u

/* `frame`: what the core has stacked, r0 to r3, r12, lr, pc, xpsr; `saved`: r4 to r11. */
__attribute__((used)) static void board_trapped(const uint32_t *frame, const uint32_t *saved)
{
	const uintptr_t registers[17] = {
		frame[0], frame[1], frame[2], frame[3], saved[0], saved[1], saved[2], saved[3], saved[4],
		saved[5], saved[6], saved[7], frame[4], (uintptr_t)(frame + 8), frame[5], frame[6], frame[7],
	};
	uint32_t ipsr, cause, address = 0;
	__asm__ volatile("mrs %0, ipsr" : "=r"(ipsr));
	cause = BOARD_EXCEPTION + (ipsr & 0x1ffu);
	if (ipsr >= 3 && ipsr <= 6) { /* the faults */
		const uint32_t status = SCB_CFSR;
		if ((status & CFSR_ACCESS) != 0)
			cause = RPX_FAULT_ACCESS;
		else if ((status & CFSR_UNDEFINED) != 0)
			cause = RPX_FAULT_UNDEFINED;
		if ((status & CFSR_BFAR_VALID) != 0)
			address = SCB_BFAR;
		else if ((status & CFSR_MMFAR_VALID) != 0)
			address = SCB_MMFAR;
	}
	board_died(cause, address, registers, 17);
	for (;;)
		cpu_sleep();
}

__attribute__((naked)) static void board_exception(void)
{
	__asm__ volatile("cpsid i\n\t"
			 "mrs r0, msp\n\t"
			 "push {r4-r11}\n\t"
			 "mov r1, sp\n\t"
			 "b board_trapped");
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
		cpu_sleep();
}

typedef void (*board_vector)(void);

/* Reset, NMI, faults, system exceptions; then the board's interrupts. */
__attribute__((section(".vectors"), used)) const struct {
	const uint32_t *stack;
	board_vector vectors[15 + BOARD_IRQS];
} board_vectors = {
	board_stack_top,
	{
		board_reset,     board_exception, board_exception, board_exception, board_exception,
		board_exception, board_exception, board_exception, board_exception, board_exception,
		board_exception, board_exception, board_exception, board_exception, board_exception,
#if BOARD_IRQS > 0
		[15 ... 14 + BOARD_IRQS] = board_interrupt,
#endif
	},
};
