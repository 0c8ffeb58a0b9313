// SPDX-License-Identifier: Apache-2.0
//! The mesh model and its pure decisions.
