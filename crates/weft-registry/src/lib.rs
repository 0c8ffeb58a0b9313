// SPDX-License-Identifier: Apache-2.0
//! Services, instances, checks, resources; folds the log into World.

pub mod catalog;
