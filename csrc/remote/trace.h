/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The trace buffer of a remote: text from offset 0 that ends with a NUL, at every moment, so that a host may read it
 * while it grows (RSC_TRACE; Linux shows strnlen() bytes of it in debugfs). It keeps the newest: where a piece does
 * not fit, the older half goes, up to the end of a line.
 */
#ifndef RPX_TRACE_H
#define RPX_TRACE_H

#include "rpx/base.h"

struct rpx_trace {
	volatile char *text; /* NULL, or `size` bytes that only this remote writes */
	uint32_t size;
	uint32_t used; /* bytes before the NUL */
};

static inline void rpx_trace_init(struct rpx_trace *t, char *text, uint32_t size)
{
	t->text = size > 1 ? text : NULL;
	t->size = size;
	t->used = 0;
	if (t->text != NULL) {
		t->text[0] = '\0';
		t->text[size - 1] = '\0';
	}
}

/* Make room for `n` bytes, n < size: drop whole lines, at least half of the text. */
static inline void rpx_trace_room(struct rpx_trace *t, uint32_t n)
{
	uint32_t from = t->used / 2u, to = 0;
	if (t->used + n < t->size)
		return;
	if (from < t->used + n + 1u - t->size)
		from = t->used + n + 1u - t->size;
	while (from < t->used && t->text[from - 1] != '\n')
		from++;
	while (from < t->used)
		t->text[to++] = t->text[from++];
	t->text[to] = '\0';
	t->used = to;
}

/* Append `n` bytes; what does not fit in the whole buffer is cut. */
static inline void rpx_trace_bytes(struct rpx_trace *t, const char *s, uint32_t n)
{
	if (t->text == NULL)
		return;
	if (n > t->size - 1u)
		n = t->size - 1u;
	rpx_trace_room(t, n);
	/* Backwards: the new NUL stands before the old one goes. */
	t->text[t->used + n] = '\0';
	for (uint32_t i = n; i > 0; i--)
		t->text[t->used + i - 1u] = s[i - 1u];
	t->used += n;
}

static inline void rpx_trace_text(struct rpx_trace *t, const char *s)
{
	uint32_t n = 0;
	while (s[n] != '\0')
		n++;
	rpx_trace_bytes(t, s, n);
}

static inline void rpx_trace_u32(struct rpx_trace *t, uint32_t v)
{
	char digits[10];
	uint32_t i = sizeof(digits);
	do {
		digits[--i] = (char)('0' + v % 10u);
		v /= 10u;
	} while (v != 0);
	rpx_trace_bytes(t, digits + i, (uint32_t)sizeof(digits) - i);
}

#endif
