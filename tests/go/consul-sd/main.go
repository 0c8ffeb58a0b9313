// SPDX-License-Identifier: Apache-2.0

// Prometheus' own discovery through Consul, with its configuration, as `prometheus` itself runs it:
// every set of targets is a line of JSON. (Debian builds prometheus without it.)
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/go-kit/log"
	"github.com/prometheus/prometheus/discovery/consul"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"gopkg.in/yaml.v2"
)

func main() {
	text, err := os.ReadFile(os.Args[1])
	fail(err)
	var config struct {
		Discovery []*consul.SDConfig `yaml:"consul_sd_configs"`
	}
	fail(yaml.UnmarshalStrict(text, &config))
	discovery, err := consul.NewDiscovery(config.Discovery[0], log.NewLogfmtLogger(os.Stderr))
	fail(err)
	groups := make(chan []*targetgroup.Group)
	go discovery.Run(context.Background(), groups)
	for sent := range groups {
		for _, group := range sent {
			line, err := json.Marshal(map[string]any{
				"source": group.Source, "targets": group.Targets, "labels": group.Labels,
			})
			fail(err)
			fmt.Println(string(line))
		}
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
