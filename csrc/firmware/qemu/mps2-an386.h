/* SPDX-License-Identifier: BSD-3-Clause */
/* QEMU's mps2-an386, a Cortex-M4: RAM and shared memory in the PSRAM; CMSDK UART 0, interrupt 0 of the NVIC. */
#ifndef RPX_QEMU_MPS2_AN386_H
#define RPX_QEMU_MPS2_AN386_H

#include "line.h"

#define BOARD_SHM 0x21100000u
#define BOARD_SHM_SIZE 0x100000u
#define BOARD_TRACE 0x2107e000u
#define BOARD_NOWHERE 0xa0000000u
#define BOARD_IRQS 32

#define UART(offset) LINE_REGISTER(uint32_t, 0x40004000u + (offset))
#define UART_DATA UART(0x0)
#define UART_STATE UART(0x4)
#define UART_CTRL UART(0x8)
#define UART_INTCLEAR UART(0xc)
#define UART_BAUDDIV UART(0x10)
#define UART_TX_FULL 1u
#define UART_RX_FULL 2u
#define UART_TX_ENABLE 1u
#define UART_RX_ENABLE 2u
#define UART_RX_INTERRUPT_ENABLE 8u
#define UART_RX_INTERRUPT 2u
/* QEMU leaves barriers out where a machine can have but one CPU. A device's register is read under a lock. */
#define BOARD_SYNC() ((void)UART_STATE)
#define NVIC_ISER0 LINE_REGISTER(uint32_t, 0xe000e100u)

static inline uint8_t line_init(void)
{
	UART_BAUDDIV = 16;
	UART_CTRL = UART_TX_ENABLE | UART_RX_ENABLE | UART_RX_INTERRUPT_ENABLE;
	NVIC_ISER0 = 1u << 0;
	/* Only a read makes QEMU deliver what waited for the receiver. Of an empty register it is 0, which rings. */
	return (uint8_t)UART_DATA;
}

static inline bool line_get(uint8_t *byte)
{
	UART_INTCLEAR = UART_RX_INTERRUPT; /* before the look: a byte that comes after it asks for another one */
	if ((UART_STATE & UART_RX_FULL) == 0)
		return false;
	*byte = (uint8_t)UART_DATA;
	return true;
}

static inline bool line_full(void)
{
	return (UART_STATE & UART_TX_FULL) != 0;
}

static inline void line_put(uint8_t byte)
{
	UART_DATA = byte;
}

static inline uint32_t line_claim(void)
{
	return 0;
}

static inline void line_complete(uint32_t irq)
{
	(void)irq;
}

#endif
