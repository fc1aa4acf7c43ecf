/* SPDX-License-Identifier: BSD-3-Clause */
/* QEMU's virt with a Cortex-A53: PL011 UART, interrupt 33 (SPI 1) of the GICv2. */
#ifndef RPX_QEMU_AARCH64_VIRT_H
#define RPX_QEMU_AARCH64_VIRT_H

#include "line.h"

#define BOARD_SHM 0x40300000u
#define BOARD_SHM_SIZE 0x100000u
#define BOARD_TRACE 0x4027e000u
#define BOARD_NOWHERE 0x0f000000u

#define UART(offset) LINE_REGISTER(uint32_t, 0x09000000u + (offset))
#define UART_DATA UART(0x0)
#define UART_FLAGS UART(0x18)
#define UART_CTRL UART(0x30)
#define UART_INTMASK UART(0x38)
#define UART_FLAGS_RX_EMPTY 0x10u
#define UART_FLAGS_TX_FULL 0x20u
#define UART_CTRL_ENABLE 0x301u /* the UART, its receiver and its transmitter */
#define UART_RX_INTERRUPT 0x10u
#define UART_IRQ 33u
#define GICD(type, offset) LINE_REGISTER(type, 0x08000000u + (offset))
#define GICC(offset) LINE_REGISTER(uint32_t, 0x08010000u + (offset))

static inline uint8_t line_init(void)
{
	UART_CTRL = UART_CTRL_ENABLE;
	UART_INTMASK = UART_RX_INTERRUPT;
	GICD(uint32_t, 0x100u + UART_IRQ / 32u * 4u) = 1u << UART_IRQ % 32u; /* enabled */
	GICD(uint8_t, 0x400u + UART_IRQ) = 0;                                 /* priority */
	GICD(uint8_t, 0x800u + UART_IRQ) = 1;                                 /* to CPU 0 */
	GICD(uint32_t, 0x0u) = 1;
	GICC(0x4u) = 0xff; /* any priority */
	GICC(0x0u) = 1;
	return LINE_RING;
}

static inline bool line_get(uint8_t *byte)
{
	if ((UART_FLAGS & UART_FLAGS_RX_EMPTY) != 0)
		return false;
	*byte = (uint8_t)UART_DATA;
	return true;
}

static inline bool line_full(void)
{
	return (UART_FLAGS & UART_FLAGS_TX_FULL) != 0;
}

static inline void line_put(uint8_t byte)
{
	UART_DATA = byte;
}

static inline uint32_t line_claim(void)
{
	return GICC(0xcu);
}

static inline void line_complete(uint32_t irq)
{
	GICC(0x10u) = irq;
}

#endif
