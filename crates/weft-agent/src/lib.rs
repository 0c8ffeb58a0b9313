// SPDX-License-Identifier: Apache-2.0
//! One machine's duties: runs pods and sidecars, probes and checks, hands out SVIDs.
