/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Every atomic access and fence of the project goes through RPX_ATOMIC_LOAD, RPX_ATOMIC_STORE and RPX_ATOMIC_FENCE.
 * Define RPX_ATOMICS_FILE to a header that defines the three to bind a memory-model explorer or an odd compiler.
 *
 * Barriers come in two flavours (enum rpx_order), chosen per queue and folded away where it is a constant:
 *   SMP     the peer is a CPU in the same coherency domain: C11 orders.
 *   DEVICE  the memory is non-cached, write-combining or device memory: the barriers a DMA driver would use.
 */
#ifndef RPX_ATOMIC_H
#define RPX_ATOMIC_H

#include "base.h"

#ifdef RPX_ATOMICS_FILE
#include RPX_ATOMICS_FILE
#else
#define RPX_ATOMIC_LOAD(p, order) __atomic_load_n((p), (order))
#define RPX_ATOMIC_STORE(p, v, order) __atomic_store_n((p), (v), (order))
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
/* ThreadSanitizer knows no fences: a locked operation on private memory is as strong and adds no false edge. */
#define RPX_ATOMIC_FENCE(order) \
	do { int rpx_fence_ = 0; __atomic_exchange_n(&rpx_fence_, 0, (order)); } while (0)
#elif defined(__x86_64__) && defined(__clang__)
/* clang makes it an mfence, gcc a locked operation: as strong for memory that is cached, and far cheaper. */
#define RPX_ATOMIC_FENCE(order) \
	do { (void)(order); __asm__ volatile("lock; orl $0, (%%rsp)" ::: "memory", "cc"); } while (0)
#else
#define RPX_ATOMIC_FENCE(order) __atomic_thread_fence(order)
#endif
#endif

enum rpx_order {
	RPX_ORDER_SMP = 0,
	RPX_ORDER_DEVICE = 1,
};

/*
 * RMB stands after an index was read, WMB before one is written: loads and stores, both, are kept on their side. A store
 * barrier alone would let the read of a payload pass the index that gives its buffer back.
 */
#if defined(__aarch64__)
#define RPX_DEVICE_RMB() __asm__ volatile("dmb oshld" ::: "memory")
#define RPX_DEVICE_WMB() __asm__ volatile("dmb osh" ::: "memory")
#define RPX_DEVICE_MB() __asm__ volatile("dmb osh" ::: "memory")
#define RPX_DOORBELL_MB() __asm__ volatile("dsb st" ::: "memory")
#elif defined(__arm__) && defined(__ARM_ARCH) && __ARM_ARCH >= 7
#define RPX_DEVICE_RMB() __asm__ volatile("dmb sy" ::: "memory")
#define RPX_DEVICE_WMB() __asm__ volatile("dmb sy" ::: "memory")
#define RPX_DEVICE_MB() __asm__ volatile("dmb sy" ::: "memory")
#define RPX_DOORBELL_MB() __asm__ volatile("dsb sy" ::: "memory")
#elif defined(__x86_64__) || (defined(__i386__) && defined(__SSE2__))
#define RPX_DEVICE_RMB() __asm__ volatile("lfence" ::: "memory")
#define RPX_DEVICE_WMB() __asm__ volatile("mfence" ::: "memory")
#define RPX_DEVICE_MB() __asm__ volatile("mfence" ::: "memory")
#define RPX_DOORBELL_MB() __asm__ volatile("sfence" ::: "memory")
#elif defined(__riscv)
#define RPX_DEVICE_RMB() __asm__ volatile("fence ir, iorw" ::: "memory")
#define RPX_DEVICE_WMB() __asm__ volatile("fence iorw, ow" ::: "memory")
#define RPX_DEVICE_MB() __asm__ volatile("fence iorw, iorw" ::: "memory")
#define RPX_DOORBELL_MB() __asm__ volatile("fence w, o" ::: "memory")
#else
#define RPX_DEVICE_RMB() RPX_ATOMIC_FENCE(__ATOMIC_SEQ_CST)
#define RPX_DEVICE_WMB() RPX_ATOMIC_FENCE(__ATOMIC_SEQ_CST)
#define RPX_DEVICE_MB() RPX_ATOMIC_FENCE(__ATOMIC_SEQ_CST)
#define RPX_DOORBELL_MB() RPX_ATOMIC_FENCE(__ATOMIC_SEQ_CST)
#endif

/* Store-to-load order: the one thing that release and acquire do not give. */
static inline void rpx_fence_full(enum rpx_order order)
{
	if (order == RPX_ORDER_SMP)
		RPX_ATOMIC_FENCE(__ATOMIC_SEQ_CST);
	else
		RPX_DEVICE_MB();
}

/* Before a doorbell register is written: what the doorbell speaks of must have left this CPU. */
static inline void rpx_fence_doorbell(void)
{
	RPX_DOORBELL_MB();
}

static inline uint8_t rpx_load8(const uint8_t *p)
{
	return RPX_ATOMIC_LOAD(p, __ATOMIC_RELAXED);
}

static inline uint8_t rpx_load8_acquire(const uint8_t *p, enum rpx_order order)
{
	if (order == RPX_ORDER_SMP)
		return RPX_ATOMIC_LOAD(p, __ATOMIC_ACQUIRE);
	uint8_t v = RPX_ATOMIC_LOAD(p, __ATOMIC_RELAXED);
	RPX_DEVICE_RMB();
	return v;
}

static inline void rpx_store8_release(uint8_t *p, uint8_t v, enum rpx_order order)
{
	if (order == RPX_ORDER_SMP) {
		RPX_ATOMIC_STORE(p, v, __ATOMIC_RELEASE);
		return;
	}
	RPX_DEVICE_WMB();
	RPX_ATOMIC_STORE(p, v, __ATOMIC_RELAXED);
}

#endif
