// SPDX-License-Identifier: Apache-2.0

//go:build tools

// The official conformance suite of the Gateway API, as its Go module ships it. Built with
// `go test -c sigs.k8s.io/gateway-api/conformance`.
package tools

import _ "sigs.k8s.io/gateway-api/conformance"
