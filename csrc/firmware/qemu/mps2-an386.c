/* SPDX-License-Identifier: BSD-3-Clause */
#include "firmware/board.h"

void board_begin(void);

/* The host starts the core here, where no vector table was read yet. */
__attribute__((naked, used)) void board_begin(void)
{
	__asm__ volatile("ldr r0, =board_vectors\n\t"
			 "ldr r1, =0xe000ed08\n\t" /* VTOR */
			 "str r0, [r1]\n\t"
			 "ldr r0, =board_stack_top\n\t"
			 "msr msp, r0\n\t"
			 "dsb\n\t"
			 "isb\n\t"
			 "b board_reset");
}
