// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"

	"github.com/openvwire/nsm/internal/lab"
)

// demo is one demonstration under way.
type demo struct {
	*narrator
	lab    *lab.Lab
	rights string // how it came to be allowed to do this
	start  time.Time

	service  string         // across nodes, IP if that is possible
	workload string         // that has a wire to it
	clients  []*lab.Process // in the order of starting
}

// perform shows everything up to the end, where all is running still.
func (d *demo) perform(ctx context.Context) error {
	for _, act := range []func(context.Context) error{
		d.twoNodes, d.localWire, d.ethernetWire, d.wireGuardWire, d.look, d.refreshAndDeath,
	} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) twoNodes(ctx context.Context) error {
	d.section("Two nodes", `Each node is a network namespace, a veth pair is the cable between them. Its daemons
		are processes of their own that find each other as on two machines: over TCP with
		mutual TLS and over Unix sockets. ('nsm up' runs all of a node in one process.)`)
	d.note("rights: %s", d.rights)
	a, b := d.lab.Node("a"), d.lab.Node("b")
	d.command("a", "nsm authority --node a")
	d.command("a", "nsm token create --node b")
	d.command("b", "nsm authority --node b --join nsm1…")
	d.command("a", "nsm registry")
	for _, n := range []*lab.Node{a, b} {
		d.command(n.Name, fmt.Sprintf("nsm manager --registry-url tcp://%s:5002", a.Addr))
		d.command(n.Name, fmt.Sprintf("nsm forwarder --tunnel-ip %s", n.Addr))
	}
	start := time.Now()
	if err := d.lab.StartDaemons(ctx); err != nil {
		return err
	}
	took := time.Since(start)
	for _, p := range d.lab.Daemons() {
		for line := range strings.Lines(p.Output()) {
			if part, rest, ok := strings.Cut(line, " listens on "); ok && !strings.Contains(part, "=") {
				_, id, _ := strings.Cut(rest, " as ")
				d.measure(p.Node, "%-10s process %-7d %s", strings.TrimSpace(part), p.PID, strings.TrimSpace(id))
			}
		}
	}
	d.check(len(d.lab.Daemons()) == 7, "7 daemons ready after %s", round(took))
	return nil
}

func (d *demo) localWire(ctx context.Context) error {
	d.section("A wire on one node", `A workload asks for the service "hello" by name and gets one interface. The other end
		of the veth pair stands in the endpoint's namespace: no bridge and no switch between.`)
	if err := d.serve(ctx, "a", "hello", "IP", "10.60.1.0/24"); err != nil {
		return err
	}
	web, err := d.connect(ctx, "a", "web", "hello")
	if err != nil {
		return err
	}
	seen, err := d.use(ctx, web, "10.60.1.0")
	if err != nil {
		return err
	}
	d.check(seen.Marked == 0 && seen.Lost == 0, "on the underlay: nothing of it, the wire does not leave the node")
	return nil
}

func (d *demo) ethernetWire(ctx context.Context) error {
	d.section("A wire across nodes that carries Ethernet", `The endpoint on node b asks for payload ETHERNET. The device in each workload is the
		end of a tunnel, whose UDP packets travel in the nodes' own network, the underlay. There
		a capture looks for the text that the application sends. Where WireGuard is the kernel's
		such a wire is VXLAN, in the clear; else it is in the encrypted tunnel of the two nodes.`)
	if err := d.serve(ctx, "b", "lan", "ETHERNET", "10.60.2.0/24"); err != nil {
		return err
	}
	shop, err := d.connect(ctx, "a", "shop", "lan")
	if err != nil {
		return err
	}
	d.service, d.workload = "lan", "shop"
	seen, err := d.use(ctx, shop, "10.60.2.0")
	if err != nil {
		return err
	}
	if d.inUserspace(ctx, wireOf("shop")) {
		d.check(wireGuardPackets(seen) > 0, "on the underlay: %d packets to WireGuard's UDP ports", wireGuardPackets(seen))
		d.check(seen.Marked == 0, "the text is in none of %d packets captured: it is ciphertext there", seen.Packets)
		return nil
	}
	d.check(seen.UDP[4789] > 0, "on the underlay: %d packets to UDP port 4789", seen.UDP[4789])
	d.check(seen.Marked > 0, "the text is in the clear in %d of them: VXLAN is not encrypted, and the capture works", seen.Marked)
	return nil
}

func (d *demo) wireGuardWire(ctx context.Context) error {
	d.section("A wire across nodes that carries IP: WireGuard, IPv4 and IPv6", `Payload IP is encrypted wherever it leaves a node. The nodes make the keys, and tell
		each other the public ones with the request, over mutual TLS. The same capture as before
		looks for the text.`)
	if why := wireGuardPossible(); why != "" {
		d.note("LEFT OUT: wireguard-go needs the tun device: %s", why)
		return nil
	}
	if err := d.serve(ctx, "b", "vault", "IP", "10.60.3.0/24,fd00:60:3::/64"); err != nil {
		return err
	}
	bank, err := d.connect(ctx, "a", "bank", "vault")
	if err != nil {
		return err
	}
	d.service, d.workload = "vault", "bank"
	if d.inUserspace(ctx, wireOf("bank")) {
		d.note("This kernel has no WireGuard: it is wireguard-go, in a process of its own, and slower.")
		d.note("All wires between two nodes share one device and one key of it at each of them.")
	}
	for _, host := range []string{"10.60.3.0", "fd00:60:3::"} {
		seen, err := d.use(ctx, bank, host)
		if err != nil {
			return err
		}
		d.check(wireGuardPackets(seen) > 0, "on the underlay: %d packets to WireGuard's UDP ports", wireGuardPackets(seen))
		d.check(seen.Marked == 0 && seen.Lost == 0, "the text is in none of %d packets captured: it is ciphertext there", seen.Packets)
	}
	return nil
}

// wireGuardPackets counts those on the underlay to the first ports of WireGuard.
func wireGuardPackets(seen lab.Captured) (n int) {
	for port, packets := range seen.UDP {
		if port >= 51820 && port < 51900 {
			n += packets
		}
	}
	return n
}

// inUserspace reports whether a wire's WireGuard is not the kernel's.
func (d *demo) inUserspace(ctx context.Context, id string) bool {
	out, err := d.lab.Node("a").Nsm(ctx, "describe", "wire", id, "-o", "json")
	var w adminv1.WireDescription
	return err == nil && protojson.Unmarshal([]byte(out), &w) == nil &&
		slices.ContainsFunc(w.GetKernel(), func(k *adminv1.KernelObjects) bool { return k.GetWireguard().GetUserspace() })
}

// look shows what an operator sees.
func (d *demo) look(ctx context.Context) error {
	d.section("What an operator sees", `Each manager answers for its node: it shows root all wires that begin, end or pass
		there, anybody else their own, with all that is known of them, down to the kernel's
		objects.`)
	for _, args := range [][]string{{"get", "nodes"}, {"get", "endpoints"}, {"get", "wires"}, {"describe", "wire", wireOf(d.workload)}} {
		d.command("a", "nsm "+strings.Join(args, " "))
		out, err := d.lab.Node("a").Nsm(ctx, args...)
		if err != nil {
			return err
		}
		d.output(out)
		if args[1] == "wires" {
			links, err := d.lab.WireLinks()
			if err != nil {
				return err
			}
			wires := strings.Count(out, "\n") - 1
			d.check(2*wires == len(links), "%d wires in the list, %d ends of wires in the workloads' namespaces", wires, len(links))
			if 2*wires != len(links) {
				d.output(strings.Join(links, "\n"))
			}
		}
	}
	return nil
}

// shortLife is the lifetime of the token of the client that is going to die.
const shortLife = 12 * time.Second

func (d *demo) refreshAndDeath(ctx context.Context) error {
	d.section("A wire lives as long as somebody refreshes it", fmt.Sprintf(`This client's token is good for %v, so its wire is, too. First it refreshes the
		wire in good time. Then it is killed with SIGKILL: nobody says goodbye, and before the
		token expires both nodes remove their ends of the wire on their own.`, shortLife))
	batch, err := d.connect(ctx, "a", "batch", d.service, "--max-token-lifetime", shortLife.String())
	if err != nil {
		return err
	}
	id := wireOf("batch")
	first, err := d.expiry(ctx, id)
	if err != nil {
		return err
	}
	refreshed, err := d.awaitRefresh(ctx, id, first)
	if err != nil {
		return err
	}
	d.check(refreshed.After(first), "refreshed: it would have expired at %s, now at %s", clock(first), clock(refreshed))

	before, err := d.lab.WireLinks()
	if err != nil {
		return err
	}
	watch, err := batch.WatchLink(wireInterface)
	if err != nil {
		return err
	}
	defer watch.Close()
	client := d.clients[len(d.clients)-1]
	d.command("a", fmt.Sprintf("kill -KILL %d", client.PID))
	client.Kill()
	killed := time.Now()
	expires, err := d.expiry(ctx, id) // by the last refresh before the kill
	if err != nil {
		return err
	}
	planned := expires.Add(-shortLife / 3)
	d.note("killed at %s; the token expires at %s, so each hop lets go from %s on,", clock(killed), clock(expires), clock(planned))
	d.note("a third of its life earlier: nothing may be left when it has expired")
	limited, cancel := context.WithDeadline(ctx, expires.Add(10*time.Second))
	defer cancel()
	gone, err := watch.Gone(limited)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		d.check(false, "the interface is removed: %v", err)
		return nil
	}
	d.check(gone.Sub(planned).Abs() < 2*time.Second, "planned for %s, removed at %s: %s later", clock(planned), clock(gone), round(gone.Sub(planned)))
	left, err := d.awaitLinks(ctx, len(before)-2)
	d.check(len(left) == len(before)-2, "ends of wires: %d before, %d after: both nodes have removed theirs, the others stay", len(before), len(left))
	return err
}

// awaitRefresh follows the wire until it expires later than before.
func (d *demo) awaitRefresh(ctx context.Context, id string, before time.Time) (after time.Time, err error) {
	d.command("a", "nsm get wires "+id+" -w")
	ctx, cancel := context.WithTimeout(ctx, shortLife)
	defer cancel()
	watch, err := d.lab.Node("a").NetNS.StartNsm(ctx, "", "get", "wires", id, "-w", "-o", "json")
	if err != nil {
		return after, err
	}
	defer func() { _ = watch.Stop() }()
	_, err = watch.WaitLine(ctx, func(line string) bool {
		var e adminv1.WireEvent
		if protojson.Unmarshal([]byte(line), &e) != nil || e.GetWire() == nil {
			return false
		}
		after = e.GetWire().GetExpires().AsTime()
		return after.After(before.Add(time.Second))
	})
	return after, err
}

// expiry asks a manager when a wire expires.
func (d *demo) expiry(ctx context.Context, id string) (time.Time, error) {
	out, err := d.lab.Node("a").Nsm(ctx, "get", "wires", id, "-o", "json")
	if err != nil {
		return time.Time{}, err
	}
	var w adminv1.WireSummary
	if err := protojson.Unmarshal([]byte(out), &w); err != nil {
		return time.Time{}, err
	}
	return w.GetExpires().AsTime(), nil
}

// end closes all wires, then everything else, and counts what is left.
func (d *demo) end(ctx context.Context) error {
	d.section("The end", `Clients that end close their wires; endpoints unregister; then the daemons are stopped
		and the namespaces deleted.`)
	ends, err := d.lab.WireLinks()
	if err != nil {
		return err
	}
	there := lab.Find(d.lab.Name, d.lab.Dir)
	for _, p := range d.clients {
		if err := p.Stop(); err != nil {
			return err
		}
	}
	left, err := d.awaitLinks(ctx, 0)
	if err != nil {
		return err
	}
	d.check(len(left) == 0, "ends of wires: %d before, %d after", len(ends), len(left))
	if err := d.lab.Close(); err != nil {
		return err
	}
	after := lab.Find(d.lab.Name, d.lab.Dir)
	for _, x := range []struct {
		what          string
		before, after []string
	}{
		{"processes", there.Processes, after.Processes},
		{"network namespaces", there.Namespaces, after.Namespaces},
		{"WireGuard sockets", there.Sockets, after.Sockets},
		{"folders", there.Files, after.Files},
	} {
		d.check(len(x.after) == 0, "%s: %d before, %d after", x.what, len(x.before), len(x.after))
		d.output(strings.Join(x.after, "\n"))
	}
	return nil
}

// awaitLinks waits until there are so many ends of wires, for a few seconds:
// the kernel deletes links at its leisure.
func (d *demo) awaitLinks(ctx context.Context, want int) (links []string, err error) {
	for range 50 {
		if links, err = d.lab.WireLinks(); err != nil || len(links) == want {
			return links, err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return links, ctx.Err()
		}
	}
	return links, nil
}

// leave lets everything run on and says how to look at it, in lines that work as
// they are printed: those after $ for whoever has started the demo, those after a#
// in the shell that the first of them opens.
func (d *demo) leave() error {
	k := &keptDemo{Rights: d.rights, Nodes: make(map[string][]string), dir: d.lab.Dir}
	if d.rights == bySudo {
		k.User = sudoUser()
	}
	for _, n := range d.lab.Nodes() {
		k.Nodes[n.Name] = append(n.Env(), "NODE_NAME="+n.Name, "NSM_IDENTITY_SOCKET="+n.Identity(), "NSM_HOLDER_SOCKET="+n.HolderSocket())
	}
	err := os.Mkdir(k.programs(), 0o755)
	if err == nil {
		err = os.Symlink(selfPath(), filepath.Join(k.programs(), "nsm"))
	}
	if err == nil {
		err = k.mark()
	}
	if err != nil {
		return err
	}
	pid := d.lab.Daemons()[0].PID
	if err := d.lab.Release(); err != nil {
		return err
	}
	demo := shellWord(selfPath()) + " demo --name " + k.short() // there may be another one, now or soon
	d.section("Left running", "Look at it from here, for as long as you like.")
	d.note("A shell on node a, where nsm finds the daemons of that node:")
	d.command("", demo+" --on a")
	d.line("a#", "nsm get wires -o wide")
	d.line("a#", "nsm get endpoints")
	if d.workload != "" { // it has come so far
		d.line("a#", "nsm describe wire "+wireOf(d.workload))
		d.line("a#", "nsm connect kernel://"+d.service+"/nsm-1 -- sh    # a shell with a wire of its own; 'exit' closes it")
		d.note("One command, in a workload:")
		d.command("", demo+" --on a-"+d.workload+" -- cat /proc/net/dev")
	}
	if ip, err := exec.LookPath("ip"); err == nil {
		enter := ""
		switch d.rights {
		case bySudo:
			enter = "sudo "
		case userNamespace:
			enter = strings.Join(enterUserNamespace(pid), " ") + " "
		}
		d.note("The network namespaces of nodes and workloads:")
		d.command("", enter+ip+" netns list")
	}
	d.note("Logs and state lie in %s. In the end:", d.lab.Dir)
	d.command("", demo+" --stop")
	return nil
}

// shellWord quotes a word for a shell, if it needs it.
func shellWord(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func (d *demo) verdict(err error) {
	took := time.Since(d.start).Round(100 * time.Millisecond)
	switch {
	case err != nil:
		d.title(fmt.Sprintf("\nended by an error after %v", took))
	case d.failed > 0:
		d.title(fmt.Sprintf("\n%d of %d checks FAILED, in %v", d.failed, d.checks, took))
	default:
		d.title(fmt.Sprintf("\nall %d checks hold, in %v", d.checks, took))
	}
}

func clock(t time.Time) string { return t.Local().Format("15:04:05.0") }

// round is a duration to three digits or so.
func round(d time.Duration) time.Duration {
	switch {
	case d.Abs() > time.Second:
		return d.Round(10 * time.Millisecond)
	case d.Abs() > time.Millisecond:
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(100 * time.Nanosecond)
}

func decodeMeasured(text string) (m measured, err error) {
	err = json.Unmarshal([]byte(text), &m)
	return m, err
}
