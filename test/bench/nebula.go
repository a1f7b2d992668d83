// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/openvwire/nsm/internal/lab"
)

const nebulaVersion = "v1.9.7"

// nebulaConfig is that of its quick start, less comments: two nodes, one of
// them the lighthouse, everything allowed. The cipher is the default, AES-GCM.
const nebulaConfig = `
pki: {ca: ca.crt, cert: node.crt, key: node.key}
static_host_map: {"LIGHTHOUSE": ["UNDERLAY:PORT"]}
lighthouse: {am_lighthouse: IS, hosts: [HOSTS]}
listen: {host: HERE, port: PORT}
tun: {dev: DEVICE, mtu: MTU}
firewall:
  outbound: [{port: any, proto: any, host: any}]
  inbound: [{port: any, proto: any, host: any}]
`

// nebula runs Nebula at both nodes. It makes its device where it runs itself and
// has no setting for another place, but does not mind when the device is moved:
//
//	nebula-cert ca …; nebula-cert sign -ip 10.77.N.1/30 …
//	nebula -config … ; ip link set NAME netns WORKLOAD
//
// It returns the processes.
func nebula(ctx context.Context, b *bench, h byHand) (pids []int, err error) {
	nodes := [2]*lab.Node{h.nodeFrom, h.nodeTo}
	authority := filepath.Join(h.nodeTo.Dir, h.name)
	lighthouse := h.address(2) // the end that answers: the other one knows where it is and asks nobody
	for i := len(nodes) - 1; i >= 0; i-- {
		n, addr, dir := nodes[i], h.address(byte(i+1)), filepath.Join(nodes[i].Dir, h.name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		in := func(file string) string { return filepath.Join(dir, file) }
		ca := []string{"-ca-crt", filepath.Join(authority, "ca.crt"), "-ca-key", filepath.Join(authority, "ca.key")}
		// That a handshake has been answered is the first thing Nebula says when
		// both nodes have configured their devices: moved earlier, they are not found.
		is, hosts, ready := "false", `"`+lighthouse.String()+`"`, "Handshake message received"
		if addr == lighthouse {
			is, hosts, ready = "true", "", "interface is active"
			if _, err := n.NetNS.Run(ctx, b.tool("nebula-cert"), "ca", "-name", "bench", "-out-crt", in("ca.crt"), "-out-key", in("ca.key")); err != nil {
				return nil, err
			}
		}
		sign := append([]string{b.tool("nebula-cert"), "sign"}, ca...)
		sign = append(sign, "-name", n.Name, "-ip", fmt.Sprintf("%v/30", addr), "-out-crt", in("node.crt"), "-out-key", in("node.key"))
		if _, err := n.NetNS.Run(ctx, sign...); err != nil {
			return nil, err
		}
		config := strings.NewReplacer(
			"ca.crt", ca[1], "node.crt", in("node.crt"), "node.key", in("node.key"),
			"LIGHTHOUSE", lighthouse.String(), "UNDERLAY", h.nodeTo.Addr.String(), "HERE", n.Addr.String(),
			"PORT", fmt.Sprint(h.port()), "IS", is, "HOSTS", hosts, "DEVICE", h.name, "MTU", fmt.Sprint(h.mtu),
		).Replace(nebulaConfig)
		if err := os.WriteFile(in("config.yml"), []byte(config), 0o600); err != nil {
			return nil, err
		}
		p, err := n.NetNS.Start(ctx, ready, b.tool("nebula"), "-config", in("config.yml"))
		if err != nil {
			return nil, err
		}
		pids = append(pids, p.PID)
	}
	err = errors.Join(h.move(h.name, h.nodeFrom.NetNS, h.from), h.move(h.name, h.nodeTo.NetNS, h.to))
	if err != nil {
		return nil, err
	}
	return pids, h.up()
}
