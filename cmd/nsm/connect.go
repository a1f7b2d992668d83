// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/nsurl"
)

type connectConfig struct {
	identityConfig
	workloadConn
	workloadConfig
	Name             string            `flag:"name" env:"NSM_NAME" help:"own name in paths; who comes back under the same name takes over its wires; default made up"`
	NetworkServices  string            `flag:"network-services" env:"NSM_NETWORK_SERVICES" help:"service URLs, separated by commas, besides those on the command line"`
	Labels           map[string]string `flag:"labels" short:"l" env:"NSM_LABELS" help:"labels of all wires, key=value[,key=value...]"`
	RequestTimeout   time.Duration     `flag:"request-timeout" env:"NSM_REQUEST_TIMEOUT" default:"15s" help:"limit of one attempt"`
	LivenessEnabled  bool              `flag:"liveness-check" env:"NSM_LIVENESS_CHECK_ENABLED" default:"true" help:"ping the endpoint through each wire, and ask for another one when it ceases to answer"`
	LivenessInterval time.Duration     `flag:"liveness-check-interval" env:"NSM_LIVENESS_CHECK_INTERVAL" default:"200ms" help:"between pings"`
	LivenessTimeout  time.Duration     `flag:"liveness-check-timeout" env:"NSM_LIVENESS_CHECK_TIMEOUT" default:"1s" help:"without an answer, after which the endpoint counts as lost"`
	Leave            bool              `flag:"leave" help:"on exit leave the wires up: the next nsm connect with the same --name takes them over; without one they expire"`
	Wait             time.Duration     `flag:"wait" default:"0s" help:"how long to go on trying while there is no endpoint yet, no forwarder, or too much load; 0 = one attempt"`
}

func newConnect(a *app) *cobra.Command {
	var cfg connectConfig
	c := &cobra.Command{
		Use:   "connect [flags] SERVICE-URL... [-- COMMAND [ARG...]]",
		Short: "Connect a workload to network services",
		Long: "Connect a workload to network services: each service URL gives its network\n" +
			"namespace one interface, the end of a wire to an endpoint of the service. The\n" +
			"wires stay, and are kept fresh, until the command ends or is interrupted. Where they\n" +
			"begin and end is printed, again when they have moved to another endpoint.\n\n" +
			"A service URL is kernel://SERVICE[@DOMAIN][/INTERFACE][?label=value&...]. The\n" +
			"workload is this process's namespace, that of --pid or --netns, or with\n" +
			"-- COMMAND a new one in which the command starts when its wires are up; nsm then\n" +
			"ends with the exit code of the command, and leaves Ctrl-C to it. When the command has\n" +
			"ended the wires are closed, which takes 10 s at most; the second Ctrl-C by then ends\n" +
			"nsm at once, and leaves them to expire.\n\n" +
			"To replace a running nsm connect, by a newer build for example, without touching\n" +
			"a packet: start it with --name NAME --leave, stop it, start it again.",
		Example: "  nsm connect 'kernel://database/nsm-1?app=web' -- psql -h 10.60.0.0\n" +
			"  nsm connect kernel://database --pid 4711\n" +
			"  nsm connect kernel://database --netns web --name web --leave",
		GroupID: groupWorkload,
		Args:    cobra.ArbitraryArgs, // URLs may come from the environment
	}
	return a.command(c, &cfg, func(ctx context.Context, args []string) error {
		urls, command := splitCommand(c, args)
		return a.connectWorkload(ctx, cfg, urls, command)
	})
}

func (a *app) connectWorkload(ctx context.Context, cfg connectConfig, urls, command []string) error {
	wishes, err := parseWishes(urls, cfg.NetworkServices)
	if err != nil {
		return err
	}
	switch {
	case cfg.Leave && cfg.Name == "":
		return nserr.BadFlag.Errorf("--leave: nobody can take over the wires of a name that is made up").WithFix("add --name")
	case cfg.Leave && len(command) > 0:
		return nserr.BadFlag.Errorf("--leave: the namespace of a command ends with it, and so do its wires").WithFix("name a namespace with --netns or --pid")
	}
	if err := probe(ctx, cfg.ConnectTo); err != nil {
		return err
	}
	w, err := openWorkload(cfg.workloadConfig, command)
	if err != nil {
		return err
	}
	defer w.close()
	source, err := cfg.openReachable(ctx, cfg.identityConfig)
	if err != nil {
		return err
	}
	defer source.Close()
	c, err := client.Open(ctx, client.Config{
		Name: cfg.Name, Manager: cfg.ConnectTo, Source: source, TokenLifetime: cfg.MaxTokenLifetime,
		RequestTimeout: cfg.RequestTimeout, Labels: cfg.Labels,
		Liveness: client.Liveness{Disabled: !cfg.LivenessEnabled, Interval: cfg.LivenessInterval, Timeout: cfg.LivenessTimeout},
	})
	if err != nil {
		return err
	}
	wires, err := a.keepWires(ctx, c, cfg, w, wishes, command)
	if len(wires) == 0 || cfg.Leave {
		return errors.Join(err, c.Close())
	}
	left := "what is not closed yet expires by itself: " + describeWires(wires, time.Now())
	return errors.Join(err, a.cleansUp("closing the wires", left, c.Close))
}

// keepWires makes the wires and keeps them until ctx or the command ends. It returns
// those that were made.
func (a *app) keepWires(ctx context.Context, c *client.Client, cfg connectConfig, w *workload, wishes []nsurl.URL, command []string) (wires []*client.Wire, _ error) {
	request := ctx
	if cfg.Wait > 0 {
		var cancel context.CancelFunc
		request, cancel = context.WithTimeout(ctx, cfg.Wait)
		defer cancel()
	}
	var places []string
	for _, u := range wishes {
		wire, err := c.Request(request, client.Request{
			Service: u.Service, Interface: u.Interface, Labels: u.Labels, NetNS: w.netns, Retry: cfg.Wait > 0,
		})
		if err != nil {
			return wires, err
		}
		wires = append(wires, wire)
		places = append(places, placeOf(wire))
		fmt.Fprintf(a.err, "nsm: %s is up: %s\n", u.Service, places[len(places)-1])
		if cfg.Leave { // else the client closes it
			defer func() {
				if w.ended() == nil {
					a.leave(wire, cfg.Name)
				}
			}()
		}
	}
	defer a.tellMoves(ctx, wires, places)()
	if len(command) > 0 {
		return wires, w.run(ctx, a, command)
	}
	return wires, w.wait(ctx)
}

// placeOf is where a wire begins and ends.
func placeOf(w *client.Wire) string {
	return fmt.Sprintf("%s on %s, the endpoint %s has %s", joinAddrs(w.Addrs()), w.Interface(),
		w.Connection().GetNetworkServiceEndpointName(), joinAddrs(w.PeerAddrs()))
}

// tellMoves says when a wire begins or ends elsewhere than was said, until ctx ends or
// stop is called.
func (a *app) tellMoves(ctx context.Context, wires []*client.Wire, places []string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var telling sync.WaitGroup
	for i, w := range wires {
		last := places[i]
		telling.Go(func() {
			for {
				_, changed, _ := w.Status()
				if place := placeOf(w); place != last && w.Connection().GetState() == networkservice.State_UP {
					fmt.Fprintf(a.err, "nsm: %s has moved: %s\n", w.Connection().GetNetworkService(), place)
					last = place
				}
				select {
				case <-changed:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return func() {
		cancel()
		telling.Wait()
	}
}

// leave lets go of a wire and leaves it up.
func (a *app) leave(wire *client.Wire, name string) {
	wire.Leave()
	fmt.Fprintf(a.err, "nsm: %s stays up on %s for %s, unless 'nsm connect --name %s' takes it over before\n",
		wire.Connection().GetNetworkService(), wire.Interface(), lasts(wire, time.Now()), name)
}

// lasts is how long a wire stays up when nobody keeps it.
func lasts(wire *client.Wire, now time.Time) string {
	segments := wire.Connection().GetPath().GetPathSegments()
	first := segments[0].GetExpires() // that of the client's own token
	for _, s := range segments {
		if s.GetExpires().AsTime().Before(first.AsTime()) {
			first = s.GetExpires()
		}
	}
	return until(first, now)
}

func describeWires(wires []*client.Wire, now time.Time) string {
	var texts []string
	for _, w := range wires {
		texts = append(texts, fmt.Sprintf("%s on %s in %s", w.Connection().GetNetworkService(), w.Interface(), lasts(w, now)))
	}
	return strings.Join(texts, ", ")
}

// splitCommand divides arguments at "--".
func splitCommand(c *cobra.Command, args []string) (before, command []string) {
	if at := c.ArgsLenAtDash(); at >= 0 {
		return args[:at], args[at:]
	}
	return args, nil
}

func parseWishes(urls []string, list string) (wishes []nsurl.URL, err error) {
	if list != "" {
		if wishes, err = nsurl.ParseList(list); err != nil {
			return nil, err
		}
	}
	for _, text := range urls {
		u, err := nsurl.Parse(text)
		if err != nil {
			return nil, err
		}
		wishes = append(wishes, u)
	}
	if len(wishes) == 0 {
		return nil, nserr.BadServiceURL.Errorf("no network service is named")
	}
	for _, u := range wishes {
		if u.Mechanism != mechanism.TypeKernel {
			return nil, nserr.BadServiceURL.Errorf("%s: only kernel:// interfaces can be made here", u)
		}
	}
	return wishes, nil
}

func joinAddrs(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	if len(texts) == 0 {
		return "no address"
	}
	return strings.Join(texts, " and ")
}
