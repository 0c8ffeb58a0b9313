// SPDX-License-Identifier: Apache-2.0
//! Both ends of the xDS protocols as sans-I/O machines with thin gRPC shells.
