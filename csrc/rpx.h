/* SPDX-License-Identifier: BSD-3-Clause */
/* Everything in csrc/rpx. */
#ifndef RPX_H
#define RPX_H

#include "rpx/base.h"
#include "rpx/atomic.h"
#include "rpx/endian.h"
#include "rpx/mem.h"
#include "rpx/wire.h"
#include "rpx/split.h"
#include "rpx/packed.h"
#include "rpx/rpmsg.h"
#include "rpx/resume.h"
#include "rpx/run.h"

#endif
