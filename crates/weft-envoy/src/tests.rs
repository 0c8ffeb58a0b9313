// SPDX-License-Identifier: Apache-2.0
//! What bootstraps become, and what is said about those that are wrong.
