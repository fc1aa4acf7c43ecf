/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Shared fields are types of their own: a raw read, or a comparison without conversion, does not compile.
 * `swap` says that the field is in the other byte order than this CPU's: legacy rings (no VERSION_1) are native
 * (VIRTIO 2.7.3), VERSION_1 rings little-endian. So it is only ever true on big-endian CPUs; elsewhere it folds away,
 * unless RPX_ANY_ENDIAN is defined (tests do, to run the swapped paths on any machine).
 */
#ifndef RPX_ENDIAN_H
#define RPX_ENDIAN_H

#include "atomic.h"

struct rpx_w16 { uint16_t raw; };
struct rpx_w32 { uint32_t raw; };
struct rpx_w64 { uint64_t raw; };

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define RPX_BIG_ENDIAN 1
#else
#define RPX_BIG_ENDIAN 0
#endif

#if RPX_BIG_ENDIAN || defined(RPX_ANY_ENDIAN)
#define RPX_SWAPPED(swap) (swap)
#else
#define RPX_SWAPPED(swap) ((void)(swap), false)
#endif

static inline uint16_t rpx_swap16(uint16_t v, bool swap)
{
	return RPX_SWAPPED(swap) ? __builtin_bswap16(v) : v;
}

static inline uint32_t rpx_swap32(uint32_t v, bool swap)
{
	return RPX_SWAPPED(swap) ? __builtin_bswap32(v) : v;
}

static inline uint64_t rpx_swap64(uint64_t v, bool swap)
{
	return RPX_SWAPPED(swap) ? __builtin_bswap64(v) : v;
}

static inline uint16_t rpx_get16(const struct rpx_w16 *p, bool swap)
{
	return rpx_swap16(RPX_ATOMIC_LOAD(&p->raw, __ATOMIC_RELAXED), swap);
}

static inline uint32_t rpx_get32(const struct rpx_w32 *p, bool swap)
{
	return rpx_swap32(RPX_ATOMIC_LOAD(&p->raw, __ATOMIC_RELAXED), swap);
}

static inline void rpx_put16(struct rpx_w16 *p, uint16_t v, bool swap)
{
	RPX_ATOMIC_STORE(&p->raw, rpx_swap16(v, swap), __ATOMIC_RELAXED);
}

static inline void rpx_put32(struct rpx_w32 *p, uint32_t v, bool swap)
{
	RPX_ATOMIC_STORE(&p->raw, rpx_swap32(v, swap), __ATOMIC_RELAXED);
}

/*
 * 64-bit fields (only addresses in descriptors) are never a synchronisation point, so 32-bit CPUs may read them in
 * halves: whatever value comes out is checked, and that value is used.
 */
static inline uint64_t rpx_get64(const struct rpx_w64 *p, bool swap)
{
#if UINTPTR_MAX > 0xffffffffu
	return rpx_swap64(RPX_ATOMIC_LOAD(&p->raw, __ATOMIC_RELAXED), swap);
#else
	const volatile uint32_t *half = (const volatile uint32_t *)(const volatile void *)p;
	uint32_t first = half[0], second = half[1];
	return rpx_swap64(RPX_BIG_ENDIAN ? (uint64_t)first << 32 | second : (uint64_t)second << 32 | first, swap);
#endif
}

static inline void rpx_put64(struct rpx_w64 *p, uint64_t v, bool swap)
{
	v = rpx_swap64(v, swap);
#if UINTPTR_MAX > 0xffffffffu
	RPX_ATOMIC_STORE(&p->raw, v, __ATOMIC_RELAXED);
#else
	volatile uint32_t *half = (volatile uint32_t *)(volatile void *)p;
	half[0] = (uint32_t)(RPX_BIG_ENDIAN ? v >> 32 : v);
	half[1] = (uint32_t)(RPX_BIG_ENDIAN ? v : v >> 32);
#endif
}

static inline uint16_t rpx_get16_acquire(const struct rpx_w16 *p, bool swap, enum rpx_order order)
{
	uint16_t raw;
	if (order == RPX_ORDER_SMP) {
		raw = RPX_ATOMIC_LOAD(&p->raw, __ATOMIC_ACQUIRE);
	} else {
		raw = RPX_ATOMIC_LOAD(&p->raw, __ATOMIC_RELAXED);
		RPX_DEVICE_RMB();
	}
	return rpx_swap16(raw, swap);
}

static inline void rpx_put16_release(struct rpx_w16 *p, uint16_t v, bool swap, enum rpx_order order)
{
	uint16_t raw = rpx_swap16(v, swap);
	if (order == RPX_ORDER_SMP) {
		RPX_ATOMIC_STORE(&p->raw, raw, __ATOMIC_RELEASE);
	} else {
		RPX_DEVICE_WMB();
		RPX_ATOMIC_STORE(&p->raw, raw, __ATOMIC_RELAXED);
	}
}

#endif
