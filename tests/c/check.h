/* SPDX-License-Identifier: BSD-3-Clause */
/* What the programs share that try one rule after the other. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures, total;

#define CHECK(cond) \
	do { \
		if (!(cond)) { \
			printf("  %s:%d: %s\n", __FILE__, __LINE__, #cond); \
			failures++; \
			return; \
		} \
	} while (0)

#define TEST(test) \
	do { \
		int before = failures; \
		test(); \
		printf("%s %s\n", failures == before ? "ok" : "FAIL", #test); \
		total++; \
	} while (0)

/* A piece of exact size, zeroed, for ASan to watch. */
static void *xalloc(size_t n)
{
	void *p = NULL;
	if (posix_memalign(&p, 16, n) != 0)
		abort();
	memset(p, 0, n);
	return p;
}

#endif
