// SPDX-License-Identifier: Apache-2.0

// kubectl, for machines that have none: the upstream command as its Go module ships it.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
)

func main() {
	os.Exit(cli.Run(cmd.NewDefaultKubectlCommand()))
}
