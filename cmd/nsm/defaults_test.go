// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// referenceDefaults are those of cmd-nsmgr, cmd-registry-memory, cmd-forwarder-vpp,
// cmd-nsc and cmd-nse-icmp-responder of v1.14, without those of parts that we do not
// have: Rego policies, OpenTelemetry, VPP, SR-IOV, DNS, routes by policy.
var referenceDefaults = map[string]map[string]string{
	"manager": {
		"NSM_NAME": "nmgr", "NSM_LISTEN_ON": "unix:///var/lib/networkservicemesh/nsm.io.sock",
		"NSM_REGISTRY_URL": "tcp://localhost:5001", "NSM_MAX_TOKEN_LIFETIME": "10m",
		"NSM_FORWARDER_NETWORK_SERVICE_NAME": "forwarder",
	},
	"registry": {
		"NSM_NAME": "", "NSM_LISTEN_ON": "unix:///listen.on.socket", "NSM_MAX_TOKEN_LIFETIME": "10m", "NSM_EXPIRE_PERIOD": "1s",
	},
	"forwarder": {
		"NSM_NAME": "forwarder", "NSM_LABELS": "p2p:true", "NSM_NSNAME": "forwarder", "NSM_CONNECT_TO": "unix:///connect.to.socket",
		"NSM_LISTEN_ON": "unix:///listen.on.socket", "NSM_MAX_TOKEN_LIFETIME": "10m", "NSM_TUNNEL_IP": "", "NSM_VXLAN_PORT": "0",
	},
	"connect": {
		"NSM_NAME": "nsc", "NSM_CONNECT_TO": "unix:///var/lib/networkservicemesh/nsm.io.sock", "NSM_DIAL_TIMEOUT": "5s",
		"NSM_REQUEST_TIMEOUT": "15s", "NSM_MAX_TOKEN_LIFETIME": "10m", "NSM_LABELS": "", "NSM_NETWORK_SERVICES": "",
		"NSM_LIVENESS_CHECK_ENABLED": "true", "NSM_LIVENESS_CHECK_INTERVAL": "200ms", "NSM_LIVENESS_CHECK_TIMEOUT": "1s",
	},
	"serve": {
		"NSM_NAME": "icmp-server", "NSM_CONNECT_TO": "unix:///var/lib/networkservicemesh/nsm.io.sock", "NSM_MAX_TOKEN_LIFETIME": "10m",
		"NSM_IPAM_POLICY": "polite", "NSM_SERVICE_NAMES": "icmp-responder", "NSM_PAYLOAD": "ETHERNET", "NSM_LABELS": "",
		"NSM_CIDR_PREFIX": "169.254.0.0/16", "NSM_REGISTER_SERVICE": "true",
	},
}

// Defaults are the reference's, or the decision that lists the others says so.
func TestDefaultsThatDiffer(t *testing.T) {
	decision, err := os.ReadFile("../../docs/adr/0005-defaults-that-differ.md")
	if err != nil {
		t.Fatal(err)
	}
	type row struct{ command, variable, reference, ours string }
	var stated, differ []row
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| `(\\w+)` \\| (.*?) \\| (.*?) \\| .+ \\|$").FindAllStringSubmatch(strings.ReplaceAll(string(decision), "| |", "|  |"), -1) {
		stated = append(stated, row{m[1], m[2], strings.Trim(m[3], "` "), strings.Trim(m[4], "` ")})
	}
	for _, c := range commands() {
		for variable, reference := range referenceDefaults[c.Name()] {
			ours, found := "", false
			c.Flags().VisitAll(func(f *pflag.Flag) {
				if strings.Contains(f.Usage, "[$"+variable+"]") {
					ours, found = f.DefValue, true
				}
			})
			switch {
			case !found:
				t.Errorf("%s does not read %s", c.Name(), variable)
			case ours != reference:
				differ = append(differ, row{c.Name(), variable, reference, ours})
			}
		}
	}
	for _, r := range differ {
		if !slices.Contains(stated, r) {
			t.Errorf("the decision does not say %+v", r)
		}
	}
	for _, r := range stated {
		if !slices.Contains(differ, r) {
			t.Errorf("the decision says %+v, which is not so", r)
		}
	}
}
