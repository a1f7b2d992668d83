// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/openvwire/nsm/internal/lab"
)

// wireInterface is the name of every wire's interface on the client's side.
const wireInterface = "nsm-1"

// wireOf is the id of a workload's wire: nsm connect --name, and a number.
func wireOf(workload string) string { return workload + "-0" }

// serve starts an endpoint with the demo's application behind it.
func (d *demo) serve(ctx context.Context, node, service, payload, cidr string) error {
	line := []string{service, "--payload", payload, "--cidr", cidr}
	d.command(node, "nsm serve "+strings.Join(line, " ")+" -- APPLICATION")
	ns := d.lab.Node(node).NetNS
	args := append(line, "--name", service+"-"+node, "--", selfPath(), "demo-workload", "serve")
	p, err := ns.Serve(ctx, args...)
	if err != nil {
		return err
	}
	_, err = p.WaitLine(ctx, func(line string) bool { return line == "ready" })
	return err
}

// connect starts a client for a new workload and shows what it got.
func (d *demo) connect(ctx context.Context, node, workload, service string, flags ...string) (*lab.NetNS, error) {
	ns, err := d.lab.Node(node).Workload(workload)
	if err != nil {
		return nil, err
	}
	args := append([]string{"kernel://" + service + "/" + wireInterface, "--name", workload}, flags...)
	d.command(node, "nsm connect "+strings.Join(args, " ")+" --netns "+workload)
	p, err := d.lab.Node(node).NetNS.StartNsm(ctx, "", append([]string{"connect", "--netns", ns.Name}, args...)...)
	if err != nil {
		return nil, err
	}
	d.clients = append(d.clients, p)
	said, err := p.WaitLine(ctx, func(line string) bool { return strings.Contains(line, " is up: ") })
	if err != nil {
		return nil, err
	}
	d.output(said)
	return ns, nil
}

// How often the application sends the text that a capture looks for: at first, and
// at least.
const (
	textTimes = 200_000
	fewTimes  = 200
)

// use sends traffic over a wire: a transfer while a capture reads along on the
// underlay, then measurements, which it would slow down.
func (d *demo) use(ctx context.Context, client *lab.NetNS, host string) (seen lab.Captured, err error) {
	seen, get, err := d.wholly(func(times int) (seen lab.Captured, get measured, err error) {
		text := lab.NewName("this-is-the-text-")
		capture, err := d.lab.Node("a").NetNS.Capture(lab.Underlay, text)
		if err != nil {
			return seen, get, err
		}
		get, err = d.measureAt(ctx, client, "http-get", host, "--text", text, "--times", fmt.Sprint(times))
		seen, stopErr := capture.Stop()
		if err == nil {
			err = stopErr
		}
		return seen, get, err
	})
	if err != nil {
		return seen, err
	}
	d.measure("HTTP", "%s from %s in %s, checksum right", size(get.Bytes), host, round(get.Elapsed))
	throughput, err := d.measureAt(ctx, client, "throughput", host)
	if err != nil {
		return seen, err
	}
	d.measure("throughput", "%.2f Gbit/s, one TCP connection, %s", float64(throughput.Bytes)*8/throughput.Elapsed.Seconds()/1e9, round(throughput.Elapsed))
	trip, err := d.measureAt(ctx, client, "rtt", host)
	if err != nil {
		return seen, err
	}
	d.measure("round trip", "%s median, %s 99th percentile", round(trip.Median), round(trip.Worst))
	return seen, nil
}

// size is a number of bytes for people.
func size(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// wholly makes a transfer, and makes it again with less to send while the capture
// loses packets, of which it could not say what is in them. How much a socket holds
// is not for a user namespace to say.
func (n *narrator) wholly(transfer func(times int) (lab.Captured, measured, error)) (seen lab.Captured, get measured, err error) {
	for times := textTimes; ; times /= 10 {
		seen, get, err = transfer(times)
		if err != nil || seen.Lost == 0 || times <= fewTimes {
			return seen, get, err
		}
		n.note("the capture came too late for %d packets: again, with less to send", seen.Lost)
	}
}

func (d *demo) measureAt(ctx context.Context, client *lab.NetNS, what, host string, flags ...string) (measured, error) {
	argv := append([]string{selfPath(), "demo-workload", what, host}, flags...)
	out, err := client.Run(ctx, argv...)
	if err != nil {
		return measured{}, err
	}
	return decodeMeasured(out)
}
