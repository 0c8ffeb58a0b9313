// SPDX-License-Identifier: Apache-2.0
//! The revisioned log with its engines.
