/* SPDX-License-Identifier: BSD-3-Clause */
/* The instructions that C has no words for. */
#ifndef RPX_FIRMWARE_CPU_H
#define RPX_FIRMWARE_CPU_H

/* Wakes up for an interrupt that is pending and enabled, masked or not. */
static inline void cpu_sleep(void)
{
	__asm__ volatile("wfi" ::: "memory");
}

#if defined(__riscv)
#define CPU_MASK "csrci mstatus, 8"
#define CPU_UNMASK "csrsi mstatus, 8"
#define CPU_UNDEFINED "unimp"
#elif defined(__aarch64__)
#define CPU_MASK "msr daifset, #2"
#define CPU_UNMASK "msr daifclr, #2"
#define CPU_UNDEFINED "udf #0"
#else
#define CPU_MASK "cpsid i"
#define CPU_UNMASK "cpsie i\n\tisb"
#define CPU_UNDEFINED "udf #0"
#endif

static inline void cpu_mask(void)
{
	__asm__ volatile(CPU_MASK ::: "memory");
}

static inline void cpu_unmask(void)
{
	__asm__ volatile(CPU_UNMASK ::: "memory");
}

static inline void cpu_undefined(void)
{
	__asm__ volatile(CPU_UNDEFINED ::: "memory");
}

#endif
