// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/openvwire/nsm/test/report"
)

// installLimit bounds the download and the build of a peer: where there is no
// way out, not every network says so.
const installLimit = 15 * time.Minute

// peer is a program with which others encrypt what passes between two machines.
type peer struct {
	name    string // of its links, short
	title   string
	install []string // what 'go install' takes, all of one version; none = it is there anyway
	make    func(context.Context, *bench, byHand) (pids []int, err error)
	network netip.Addr // of the addresses of its link, if it has to be that one
}

var peers = []peer{
	{name: "wggo", title: "wireguard-go", make: wireGuardByHand},
	{name: "nebula", title: "Nebula " + nebulaVersion, install: []string{
		"github.com/slackhq/nebula/cmd/nebula@" + nebulaVersion,
		"github.com/slackhq/nebula/cmd/nebula-cert@" + nebulaVersion,
	}, make: nebula},
	{name: "tails", title: "Tailscale " + tailscaleVersion, install: []string{
		"tailscale.com/cmd/tailscaled@" + tailscaleVersion,
		"tailscale.com/cmd/tailscale@" + tailscaleVersion,
		"tailscale.com/cmd/testcontrol@" + tailscaleVersion,
	}, make: tailscale, network: tailscaleNetwork},
}

// Peers is our encrypted wire beside those of others, all between the same two
// namespaces.
type Peers struct {
	MTU     int          `json:"mtu"`
	Names   []string     `json:"names"`              // as in each row's Against
	LeftOut []string     `json:"left_out,omitempty"` // who is not among them, and why
	Metrics []PeerMetric `json:"metrics"`
}

// PeerMetric is one row of the table.
type PeerMetric struct {
	Name    string    `json:"name"`
	Unit    string    `json:"unit"`
	Against []Against `json:"against"`
}

// Against is what one peer and our wire have reached.
type Against struct {
	report.Pairs               // every round: peer, wire
	Ratio        report.Spread `json:"ratio"`
}

// peers measures whichever peers there are.
func (b *bench) peers(ctx context.Context) (*Peers, error) {
	k := kinds[slices.IndexFunc(kinds, func(k kind) bool { return k.name == "tunnel" })] // what users get
	if err := b.use(ctx, k); err != nil {
		return nil, err
	}
	wire, c, err := b.wire(ctx, k, "nsm-peers")
	if err != nil {
		return nil, err
	}
	out := &Peers{MTU: c.MTU}
	var sides []side
	for _, p := range peers {
		if err := b.install(ctx, p.install); err != nil {
			b.progress("%s is left out: %v", p.title, err)
			out.LeftOut = append(out.LeftOut, fmt.Sprintf("%s: %v", p.title, err))
			continue
		}
		k.make, k.network = p.make, p.network
		s, err := b.hand(ctx, k, "hand-"+p.name, c.MTU)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.title, err)
		}
		sides, out.Names = append(sides, s), append(out.Names, p.title)
	}
	all, err := b.takeTurns(ctx, append(sides, wire)...)
	if err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	for _, f := range all {
		m := PeerMetric{Name: f.name, Unit: f.unit}
		for _, p := range f.pairs() {
			m.Against = append(m.Against, Against{p, p.Ratio()})
		}
		out.Metrics = append(out.Metrics, m)
	}
	return out, nil
}

// install builds programs into b.tools, downloading what it takes.
func (b *bench) install(ctx context.Context, packages []string) error {
	if len(packages) == 0 {
		return nil
	}
	if b.short {
		return errors.New("it has to be downloaded, and -short does without")
	}
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	c := exec.CommandContext(ctx, "go", append([]string{"install", "-trimpath"}, packages...)...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+b.tools)
	if out, err := c.CombinedOutput(); err != nil {
		// The last line says why; those before say what was being downloaded.
		said := bytes.TrimSpace(out)
		return fmt.Errorf("go install %s: %w: %s", packages[0], err, said[bytes.LastIndexByte(said, '\n')+1:])
	}
	return nil
}

// tool is the path of a program that the benchmark has built.
func (b *bench) tool(name string) string { return filepath.Join(b.tools, name) }
