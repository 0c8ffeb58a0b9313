// SPDX-License-Identifier: Apache-2.0
//! The doors: Kubernetes-style HTTP, Consul HTTP, DNS, admin.
