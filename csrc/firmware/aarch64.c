/* SPDX-License-Identifier: BSD-3-Clause */
/* AArch64 at EL1, MMU off: reset, exceptions. Registers are reported as x0 to x30, sp, pc, cpsr. */
#include "board.h"
#include "cpu.h"
#include "remote/remote.h"

/* Exceptions have a stack of their own, SP_EL1: a fault may have come of a bad stack pointer. */
#define PAIRS(op) \
	op " x2, x3, [sp, #16]\n" op " x4, x5, [sp, #32]\n" op " x6, x7, [sp, #48]\n" op " x8, x9, [sp, #64]\n" \
	op " x10, x11, [sp, #80]\n" op " x12, x13, [sp, #96]\n" op " x14, x15, [sp, #112]\n" \
	op " x16, x17, [sp, #128]\n" op " x18, x19, [sp, #144]\n" op " x20, x21, [sp, #160]\n" \
	op " x22, x23, [sp, #176]\n" op " x24, x25, [sp, #192]\n" op " x26, x27, [sp, #208]\n" \
	op " x28, x29, [sp, #224]\n"
#define FRAME "272" /* x0 to x30 and three more */

/* An entry of the vector table, 128 bytes. */
#define VECTOR(kind) \
	".balign 128\n" \
	"	sub sp, sp, #" FRAME "\n" \
	"	stp x0, x1, [sp]\n" \
	"	mov x1, #" #kind "\n" \
	"	b board_trap\n"
#define FOUR VECTOR(0) VECTOR(1) VECTOR(2) VECTOR(3) /* synchronous, IRQ, FIQ, SError */

__asm__(".section .text.start, \"ax\"\n"
	".globl board_reset\n"
	"board_reset:\n"
	"	msr spsel, #1\n"
	"	adrp x0, board_trap_stack + 2048\n"
	"	add x0, x0, :lo12:board_trap_stack + 2048\n"
	"	mov sp, x0\n"
	"	msr spsel, #0\n"
	"	adrp x0, board_stack_top\n"
	"	add x0, x0, :lo12:board_stack_top\n"
	"	mov sp, x0\n"
	"	adrp x0, board_vectors\n"
	"	add x0, x0, :lo12:board_vectors\n"
	"	msr vbar_el1, x0\n"
	"	isb\n"
	"	adrp x0, board_bss_start\n"
	"	add x0, x0, :lo12:board_bss_start\n"
	"	adrp x1, board_bss_end\n"
	"	add x1, x1, :lo12:board_bss_end\n"
	"1:	cmp x0, x1\n"
	"	b.hs 2f\n"
	"	str wzr, [x0], #4\n"
	"	b 1b\n"
	"2:	bl board_main\n"
	"3:	wfi\n"
	"	b 3b\n"
	"board_trap:\n"
	PAIRS("stp")
	"	mrs x0, sp_el0\n"
	"	stp x30, x0, [sp, #240]\n"
	"	mrs x2, elr_el1\n"
	"	mrs x3, spsr_el1\n"
	"	stp x2, x3, [sp, #256]\n"
	"	mov x0, sp\n"
	"	bl board_trapped\n"
	PAIRS("ldp")
	"	ldr x30, [sp, #240]\n"
	"	ldp x0, x1, [sp]\n"
	"	add sp, sp, #" FRAME "\n"
	"	eret\n"
	".balign 2048\n"
	"board_vectors:\n"
	FOUR FOUR FOUR FOUR);

__attribute__((used, aligned(16))) static uint64_t board_trap_stack[2048 / 8];

enum {
	ESR_UNKNOWN = 0x00,
	ESR_FETCH = 0x21, /* aborts without a change of the exception level */
	ESR_DATA = 0x25,
};

/* `registers`: x0 to x30, sp, pc, cpsr; `kind`: which of the four of VECTOR. */
__attribute__((used)) static void board_trapped(const uintptr_t *registers, uintptr_t kind)
{
	if (kind == 1) {
		board_interrupt();
		return;
	}
	uint64_t esr, address;
	__asm__ volatile("mrs %0, esr_el1" : "=r"(esr));
	__asm__ volatile("mrs %0, far_el1" : "=r"(address));
	const uint32_t class = (uint32_t)(esr >> 26) & 0x3fu;
	uint32_t why = BOARD_EXCEPTION + class;
	if (class == ESR_UNKNOWN)
		why = RPX_FAULT_UNDEFINED;
	else if (class == ESR_FETCH || class == ESR_DATA)
		why = RPX_FAULT_ACCESS;
	board_died(why, address, registers, 34);
	for (;;)
		cpu_sleep();
}
