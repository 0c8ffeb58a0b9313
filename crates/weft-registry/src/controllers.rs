// SPDX-License-Identifier: Apache-2.0
//! Controllers: what is wanted becomes what is.
