/* SPDX-License-Identifier: BSD-3-Clause */
/* RISC-V, machine mode, 32 and 64 bits: reset, traps. Registers are reported as pc, x1 to x31. */
#include "board.h"
#include "cpu.h"
#include "remote/remote.h"

#if __riscv_xlen == 64
#define LOAD "ld "
#define STORE "sd "
#define WORD "8"
#else
#define LOAD "lw "
#define STORE "sw "
#define WORD "4"
#endif

/* What a trap saves at its frame and brings back: x1, and from x3 on. */
#define EACH(op) \
	op "x1, 1*" WORD "(sp)\n" op "x3, 3*" WORD "(sp)\n" op "x4, 4*" WORD "(sp)\n" op "x5, 5*" WORD "(sp)\n" \
	op "x6, 6*" WORD "(sp)\n" op "x7, 7*" WORD "(sp)\n" op "x8, 8*" WORD "(sp)\n" op "x9, 9*" WORD "(sp)\n" \
	op "x10, 10*" WORD "(sp)\n" op "x11, 11*" WORD "(sp)\n" op "x12, 12*" WORD "(sp)\n" \
	op "x13, 13*" WORD "(sp)\n" op "x14, 14*" WORD "(sp)\n" op "x15, 15*" WORD "(sp)\n" \
	op "x16, 16*" WORD "(sp)\n" op "x17, 17*" WORD "(sp)\n" op "x18, 18*" WORD "(sp)\n" \
	op "x19, 19*" WORD "(sp)\n" op "x20, 20*" WORD "(sp)\n" op "x21, 21*" WORD "(sp)\n" \
	op "x22, 22*" WORD "(sp)\n" op "x23, 23*" WORD "(sp)\n" op "x24, 24*" WORD "(sp)\n" \
	op "x25, 25*" WORD "(sp)\n" op "x26, 26*" WORD "(sp)\n" op "x27, 27*" WORD "(sp)\n" \
	op "x28, 28*" WORD "(sp)\n" op "x29, 29*" WORD "(sp)\n" op "x30, 30*" WORD "(sp)\n" \
	op "x31, 31*" WORD "(sp)\n"

/* Traps have a stack of their own, in mscratch: a fault may have come of a bad stack pointer. */
__asm__(".section .text.start, \"ax\"\n"
	".globl board_reset\n"
	"board_reset:\n"
	"	la sp, board_trap_stack + 2048\n"
	"	csrw mscratch, sp\n"
	"	la sp, board_stack_top\n"
	"	la t0, board_bss_start\n"
	"	la t1, board_bss_end\n"
	"1:	bgeu t0, t1, 2f\n"
	"	sw zero, 0(t0)\n"
	"	addi t0, t0, 4\n"
	"	j 1b\n"
	"2:	la t0, board_trap\n"
	"	csrw mtvec, t0\n"
	"	call board_main\n"
	"3:	wfi\n"
	"	j 3b\n"
	".balign 4\n"
	"board_trap:\n"
	"	csrrw sp, mscratch, sp\n"
	"	addi sp, sp, -32*" WORD "\n"
	EACH(STORE)
	"	csrr t0, mscratch\n"
	"	" STORE "t0, 2*" WORD "(sp)\n"
	"	mv a0, sp\n"
	"	call board_trapped\n"
	EACH(LOAD)
	"	addi sp, sp, 32*" WORD "\n"
	"	csrrw sp, mscratch, sp\n"
	"	mret\n");

__attribute__((used)) static uint64_t board_trap_stack[2048 / 8];

#define MCAUSE_INTERRUPT ((uintptr_t)1 << (__riscv_xlen - 1))
enum {
	MCAUSE_FETCH = 1,
	MCAUSE_ILLEGAL = 2,
	MCAUSE_LOAD = 5,
	MCAUSE_STORE = 7,
};

/* `registers`: x0 to x31, with the pc to be written in place of x0. */
__attribute__((used)) static void board_trapped(uintptr_t *registers)
{
	uintptr_t cause, address;
	__asm__ volatile("csrr %0, mcause" : "=r"(cause));
	if ((cause & MCAUSE_INTERRUPT) != 0) {
		board_interrupt();
		return;
	}
	__asm__ volatile("csrr %0, mepc" : "=r"(registers[0]));
	__asm__ volatile("csrr %0, mtval" : "=r"(address));
	uint32_t why = BOARD_EXCEPTION + (uint32_t)cause;
	if (cause == MCAUSE_ILLEGAL)
		why = RPX_FAULT_UNDEFINED;
	else if (cause == MCAUSE_FETCH || cause == MCAUSE_LOAD || cause == MCAUSE_STORE)
		why = RPX_FAULT_ACCESS;
	board_died(why, address, registers, 32);
	for (;;)
		cpu_sleep();
}
