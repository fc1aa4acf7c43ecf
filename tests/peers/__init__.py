# SPDX-License-Identifier: BSD-3-Clause
"""Ends of an rpmsg link that share no code with rpmsgx: they check its bytes from outside."""
