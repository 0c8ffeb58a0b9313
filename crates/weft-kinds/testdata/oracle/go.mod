// SPDX-License-Identifier: Apache-2.0
module oracle

go 1.26

require (
	k8s.io/api v0.36.3
	k8s.io/apimachinery v0.36.3
	k8s.io/kube-openapi v0.0.0-20260821135717-be32def86098
)
