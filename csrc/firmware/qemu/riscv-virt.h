/* SPDX-License-Identifier: BSD-3-Clause */
/* QEMU's virt with a RISC-V CPU of 32 or 64 bits: 16550 UART, interrupt 10 of the PLIC, context 0 (hart 0, M mode). */
#ifndef RPX_QEMU_RISCV_VIRT_H
#define RPX_QEMU_RISCV_VIRT_H

#include "line.h"

#define BOARD_SHM 0x80100000u
#define BOARD_SHM_SIZE 0x100000u
#define BOARD_TRACE 0x8007e000u
#define BOARD_NOWHERE 0x08000000u

#define UART(offset) LINE_REGISTER(uint8_t, 0x10000000u + (offset))
#define UART_DATA UART(0)
#define UART_IER UART(1)
#define UART_LSR UART(5)
#define UART_IER_RX 0x01u
#define UART_LSR_RX 0x01u
#define UART_LSR_TX_EMPTY 0x20u
#define UART_IRQ 10u
#define PLIC(offset) LINE_REGISTER(uint32_t, 0x0c000000u + (offset))
#define PLIC_PRIORITY(irq) PLIC(4u * (irq))
#define PLIC_ENABLE PLIC(0x2000u)
#define PLIC_THRESHOLD PLIC(0x200000u)
#define PLIC_CLAIM PLIC(0x200004u)
#define MIE_EXTERNAL (1u << 11)

static inline uint8_t line_init(void)
{
	/* The FIFO stays off: to switch it on would drop a byte that is there already. */
	UART_IER = UART_IER_RX;
	PLIC_PRIORITY(UART_IRQ) = 1;
	PLIC_ENABLE = 1u << UART_IRQ;
	PLIC_THRESHOLD = 0;
	__asm__ volatile("csrs mie, %0" ::"r"(MIE_EXTERNAL));
	return LINE_RING;
}

static inline bool line_get(uint8_t *byte)
{
	if ((UART_LSR & UART_LSR_RX) == 0)
		return false;
	*byte = UART_DATA;
	return true;
}

static inline bool line_full(void)
{
	return (UART_LSR & UART_LSR_TX_EMPTY) == 0;
}

static inline void line_put(uint8_t byte)
{
	UART_DATA = byte;
}

static inline uint32_t line_claim(void)
{
	return PLIC_CLAIM;
}

static inline void line_complete(uint32_t irq)
{
	PLIC_CLAIM = irq;
}

#endif
