// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
)

func newDescribe(a *app) *cobra.Command {
	describe := &cobra.Command{
		Use:     "describe",
		Short:   "Tell everything about one wire",
		Example: "  nsm describe wire 3f2a",
		GroupID: groupOperate,
		RunE:    group,
	}
	describe.AddCommand(newDescribeWire(a))
	return describe
}

func newDescribeWire(a *app) *cobra.Command {
	var cfg struct {
		managerConfig
		objectOutput
	}
	c := a.command(&cobra.Command{
		Use:   "wire ID",
		Short: "Tell everything about one wire",
		Long: "Tell everything about one wire: its path hop by hop with identities, mechanisms,\n" +
			"addresses, routes, MTU, expiry, and what the kernel has for it. The beginning of\n" +
			"an ID is enough if only one wire begins so. A wire that a tunnel carries is looked at\n" +
			"twice, a second apart, and warned of if what it sends does not come back, or\n" +
			"WireGuard has no handshake.",
		Example:           "  nsm describe wire 3f2a",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeNames(a, &cfg.managerConfig, wireKind()),
	}, &cfg, func(ctx context.Context, args []string) error {
		return a.call(ctx, cfg.managerConfig, func(ctx context.Context, c adminv1.AdminClient) error {
			d, err := c.DescribeWire(ctx, &adminv1.DescribeWireRequest{Id: args[0]})
			if err != nil {
				return err
			}
			if cfg.Output != "" {
				return printObject(a.out, cfg.Output, d)
			}
			now := time.Now()
			again := lookAgain(ctx, c, args[0], d)
			_, err = io.WriteString(a.out, describeWire(d, warnings(d, again, now), now))
			return err
		})
	})
	complete(c, "output", "json", "yaml")
	return c
}

// page is a text in sections of indented lines.
type page struct{ strings.Builder }

func (p *page) section(title string) { fmt.Fprintf(p, "\n%s\n", printable(title)) }

// field prints a line "Name  text" unless text is empty.
func (p *page) field(name, text string) {
	if text != "" {
		fmt.Fprintf(p, "%-12s %s\n", name, printable(text))
	}
}

// rows prints an indented table.
func (p *page) rows(rows [][]string) {
	var text strings.Builder
	_ = (&table{out: &text}).print(rows...) // a Builder does not fail
	p.lines(strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n"))
}

func (p *page) lines(lines []string) {
	for _, line := range lines {
		p.WriteString("  " + printable(line) + "\n")
	}
}

// lookAgain describes the wire a second time if its counters may tell something then.
func lookAgain(ctx context.Context, c adminv1.AdminClient, id string, d *adminv1.WireDescription) *adminv1.WireDescription {
	if !worthASecondLook(d) {
		return nil
	}
	select {
	case <-time.After(secondLook):
	case <-ctx.Done():
		return nil
	}
	again, err := c.DescribeWire(ctx, &adminv1.DescribeWireRequest{Id: id})
	if err != nil {
		return nil // it has just ended; it is described as it was
	}
	return again
}

// describeWire is a wire for a human reader.
func describeWire(d *adminv1.WireDescription, warnings []string, now time.Time) string {
	var p page
	s, c := d.GetSummary(), d.GetContext()
	p.field("Wire", s.GetId())
	p.field("Service", s.GetService()+" (payload "+orNone(s.GetPayload())+")")
	p.field("State", fmt.Sprintf("%s for %s, expires in %s unless refreshed",
		conditionText(s), since(stateSince(s), now), until(s.GetExpires(), now)))
	p.field("Attempts", failuresText(s))
	for _, text := range warnings {
		p.field("Warning", text)
	}
	p.field("Client", sideText(s.GetClient()))
	p.field("Endpoint", sideText(s.GetEndpoint()))
	p.field("Labels", labelText(s.GetLabels()))
	if mtu := c.GetMtu(); mtu > 0 {
		p.field("MTU", fmt.Sprint(mtu))
	}
	p.field("Excluded", strings.Join(c.GetExcludedPrefixes(), ", "))

	p.section("Path")
	rows := [][]string{{"#", "ROLE", "NAME", "NODE", "EXPIRES", "IDENTITY", "ID", "BUILD"}}
	for i, h := range d.GetHops() {
		rows = append(rows, []string{
			fmt.Sprint(i), strings.ToLower(strings.TrimPrefix(h.GetRole().String(), "ROLE_")), h.GetName(), orNone(h.GetNode()),
			until(h.GetExpires(), now), orNone(h.GetSpiffeId()), h.GetId(), orNone(h.GetVersion().GetVersion()),
		})
	}
	p.rows(rows)
	p.describeLegs(d.GetLegs())
	p.describeContext(c)
	for _, k := range d.GetKernel() {
		p.describeKernel(k, now)
	}
	if len(d.GetHistory()) > 0 {
		p.section("History")
		rows = nil
		for _, e := range d.GetHistory() {
			rows = append(rows, []string{since(e.GetTime(), now) + " ago", e.GetKind(), strings.TrimSpace(e.GetReason() + " " + e.GetMessage())})
		}
		p.rows(rows)
	}
	return p.String()
}

// stateSince is since when a wire is in its state; a manager of before does not say.
func stateSince(s *adminv1.WireSummary) *timestamppb.Timestamp {
	if s.GetStateSince() != nil {
		return s.GetStateSince()
	}
	return s.GetEstablished()
}

// failuresText is attemptsText with what the reason means and how to fix it.
func failuresText(s *adminv1.WireSummary) string {
	if s.GetAttempts() == 0 {
		return ""
	}
	text := fmt.Sprintf("%d in vain", s.GetAttempts())
	if s.GetLastError() == "" {
		return text
	}
	text += ", the last for " + s.GetLastError()
	for _, r := range nserr.Reasons {
		if r.Code == s.GetLastError() {
			text += fmt.Sprintf(": %s (fix: %s)", r.Summary, r.Fix)
		}
	}
	return text
}

func sideText(s *adminv1.WireSide) string {
	text := orNone(s.GetName())
	if s.GetNode() != "" {
		text += " on " + s.GetNode()
	}
	for _, more := range []string{s.GetInterface(), strings.Join(s.GetAddresses(), ", ")} {
		if more != "" {
			text += ", " + more
		}
	}
	return text
}

func (p *page) describeLegs(legs []*adminv1.WireLeg) {
	if len(legs) == 0 {
		return
	}
	p.section("Mechanisms")
	var rows [][]string
	for _, l := range legs {
		var params []string
		for _, key := range slices.Sorted(maps.Keys(l.GetParameters())) {
			params = append(params, key+"="+l.GetParameters()[key])
		}
		rows = append(rows, []string{l.GetFrom() + " > " + l.GetTo(), l.GetClass() + "/" + l.GetType(), strings.Join(params, " ")})
	}
	p.rows(rows)
}

func (p *page) describeContext(c *adminv1.ConnectionContext) {
	var rows [][]string
	for _, side := range []struct {
		name      string
		addresses []string
		mac       string
		routes    []*adminv1.Route
	}{
		{"client", c.GetSrcAddresses(), c.GetSrcMac(), c.GetSrcRoutes()},
		{"endpoint", c.GetDstAddresses(), c.GetDstMac(), c.GetDstRoutes()},
	} {
		for _, a := range side.addresses {
			rows = append(rows, []string{side.name, "address", a})
		}
		if side.mac != "" {
			rows = append(rows, []string{side.name, "mac", side.mac})
		}
		for _, r := range side.routes {
			rows = append(rows, []string{side.name, "route", routeText(r)})
		}
	}
	for _, x := range c.GetPolicies() {
		rows = append(rows, []string{"client", "policy", policyText(x)})
	}
	for _, x := range c.GetDns() {
		rows = append(rows, []string{"client", "dns", strings.Join(append(x.GetServers(), x.GetSearchDomains()...), " ")})
	}
	if len(rows) > 0 {
		p.section("Addresses and routes")
		p.rows(rows)
	}
}

func routeText(r *adminv1.Route) string {
	if r.GetNextHop() == "" {
		return r.GetPrefix()
	}
	return r.GetPrefix() + " via " + r.GetNextHop()
}

func policyText(x *adminv1.Policy) string {
	var parts []string
	for _, part := range []struct{ name, text string }{
		{"from", x.GetFrom()}, {"proto", x.GetProto()}, {"sport", x.GetSrcPort()}, {"dport", x.GetDstPort()},
	} {
		if part.text != "" {
			parts = append(parts, part.name+" "+part.text)
		}
	}
	return strings.Join(parts, " ") + " > " + orNone(joined(x.GetRoutes(), routeText))
}

func (p *page) describeKernel(k *adminv1.KernelObjects, now time.Time) {
	title := "Kernel, by forwarder " + k.GetForwarder()
	if k.GetNode() != "" {
		title += " on " + k.GetNode()
	}
	p.section(title)
	if k.GetError() != "" {
		p.lines([]string{"cannot tell: " + k.GetError()})
		return
	}
	for _, l := range k.GetLinks() {
		n := l.GetCounters()
		p.lines([]string{
			fmt.Sprintf("link %s (%s, %s) in namespace %s", l.GetName(), l.GetKind(), l.GetState(), namespaceText(l)),
			fmt.Sprintf("  index %d, mtu %d, mac %s, alias %q", l.GetIndex(), l.GetMtu(), orNone(l.GetMac()), l.GetAlias()),
			fmt.Sprintf("  received %d packets, %d bytes, %d errors, %d dropped", n.GetRxPackets(), n.GetRxBytes(), n.GetRxErrors(), n.GetRxDropped()),
			fmt.Sprintf("  sent     %d packets, %d bytes, %d errors, %d dropped", n.GetTxPackets(), n.GetTxBytes(), n.GetTxErrors(), n.GetTxDropped()),
		})
		for _, addr := range l.GetAddresses() {
			p.lines([]string{"  address " + addr})
		}
		for _, route := range l.GetRoutes() {
			p.lines([]string{"  route " + route})
		}
	}
	if w := k.GetWireguard(); w != nil {
		where := "kernel module"
		if w.GetUserspace() {
			where = "userspace"
		}
		handshake := "never"
		if w.GetLastHandshake() != nil {
			handshake = since(w.GetLastHandshake(), now) + " ago"
		}
		p.lines([]string{
			fmt.Sprintf("wireguard (%s), port %d, key %s", where, w.GetListenPort(), w.GetPublicKey()),
			fmt.Sprintf("  peer %s at %s, last handshake %s, received %d bytes, sent %d bytes",
				w.GetPeerPublicKey(), orNone(w.GetEndpoint()), handshake, w.GetRxBytes(), w.GetTxBytes()),
		})
	}
	if len(k.GetPlan()) > 0 {
		p.lines([]string{"made as if by"})
		p.lines(indent(k.GetPlan()))
	}
	if len(k.GetDrift()) == 0 {
		p.lines([]string{"as it should be"})
		return
	}
	p.lines([]string{"NOT as it should be; the forwarder repairs it when it compares next (--reconcile), as if by"})
	p.lines(indent(k.GetDrift()))
}

// namespaceText is a namespace and whose it is.
func namespaceText(l *adminv1.Link) string {
	switch name, pid := l.GetNamespaceName(), l.GetNamespacePid(); {
	case name != "" && pid != 0:
		return fmt.Sprintf("%s (%s, process %d)", name, l.GetNamespace(), pid)
	case name != "":
		return fmt.Sprintf("%s (%s, no process)", name, l.GetNamespace())
	case pid != 0:
		return fmt.Sprintf("%s (of process %d)", l.GetNamespace(), pid)
	}
	return l.GetNamespace() + ", which has no process and no name that the forwarder sees"
}

func indent(lines []string) []string {
	out := make([]string, len(lines))
	for i, line := range lines {
		out[i] = "  " + line
	}
	return out
}
