/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What main.c and the start-up code of a CPU need of a board. Its header, RPX_BOARD_FILE, defines
 *
 *   BOARD_SHM, BOARD_SHM_SIZE   the memory that is shared with the host
 *   BOARD_TRACE                 the trace buffer, right above the stack. A number: a resource table has 32 bits for it,
 *                               and no C constant of a 64-bit CPU makes those from a pointer
 *   BOARD_NOWHERE               an address where nothing answers
 *   BOARD_IRQS                  interrupt vectors, for a Cortex-M
 *
 * and its linker script board_stack_top, board_bss_start and board_bss_end, for a Cortex-M board_data_load,
 * board_data_start and board_data_end too. The functions up to board_give_up are the board's, those below are common.
 */
#ifndef RPX_BOARD_H
#define RPX_BOARD_H

#include <stdint.h>

#include RPX_BOARD_FILE

/* The port of csrc/remote, see remote.h. */
void board_kick(void *ctx, uint32_t notifyid);
uint32_t board_poll(void *ctx);
uint32_t board_wait(void *ctx);
void board_ack(void *ctx, uint32_t events);

void board_init(void);
uint64_t board_shm_address(void); /* what descriptors call the start of the shared memory */
void board_interrupt(void);       /* one came; for a Cortex-M with BOARD_IRQS, and for the others */

#define BOARD_TRACE_SIZE 0x1000u
#define BOARD_EXCEPTION 0x100u

/*
 * Tells the host why the core is dead: RPX_FAULT_*, or BOARD_EXCEPTION plus the CPU's number of the exception;
 * `address` is what RPX_FAULT_ACCESS accessed, `registers` are as the CPU's start-up code lays them out. Interrupts
 * are off.
 */
void board_died(uint32_t cause, uint64_t address, const uintptr_t *registers, uint32_t count);
void board_give_up(uint32_t cause); /* the same, called where the registers are those of the caller */

void board_reset(void); /* where the CPU begins */
void board_main(void);

#endif
