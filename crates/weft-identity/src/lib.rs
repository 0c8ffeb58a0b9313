// SPDX-License-Identifier: Apache-2.0
//! SPIFFE identities, the certificate authority, rotation, rustls configurations, tokens.
