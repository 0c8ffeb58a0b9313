// SPDX-License-Identifier: Apache-2.0
//! Generated, committed prost and tonic code; no hand logic.
