// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/registry/memory"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/test/bench/probe"
	"github.com/openvwire/nsm/test/report"
)

// perService is how many endpoints each network service has in the registry that is
// measured.
const perService = 50

// Bounds of the registry.
const (
	findBound   = 5 * time.Millisecond   // p99
	fanOutBound = 500 * time.Millisecond // every watcher has heard of a change
)

// Registry is how fast a registry with many endpoints answers, and tells watchers.
type Registry struct {
	Endpoints int       `json:"endpoints"`
	Watchers  int       `json:"watchers"` // each with a connection of its own
	ByName    Durations `json:"by_name"`  // Find of one
	ByService Durations `json:"by_service"`
	FanOut    Durations `json:"fan_out"`      // from a change to the last watcher's knowing
	Resident  float64   `json:"resident_mib"` // of the registry, with all that
}

// registryTask is what a "registry" child is told: first to fill itself and listen,
// then to change the endpoint with a name.
type registryTask struct {
	Endpoints int
	Change    string
}

// registryState is where it listens.
type registryState struct{ Address string }

// registryRole is the "registry" child: a registry with stores in memory, over
// plaintext TCP on loopback, in which everybody may read.
func registryRole() error {
	endpoints := memory.New[*api.NetworkServiceEndpoint]()
	server := registry.New(registry.Config{
		Name: "registry", Services: memory.New[*api.NetworkService](), Endpoints: endpoints, Logger: slog.New(slog.DiscardHandler),
		Tokens: func(*x509.Certificate) (string, time.Time, error) {
			return "", time.Time{}, errors.New("nobody registers over the network here")
		},
	})
	defer server.Close()
	_, credentials := rpc.Plaintext()
	s := rpc.NewServer(rpc.ServerOptions{Credentials: credentials})
	server.Register(s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() { s.Stop(); <-served }()
	put := func(name, service, labels string) error {
		_, err := endpoints.Update(context.Background(), name, func(*api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error) {
			return &api.NetworkServiceEndpoint{
				Name: name, Url: "tcp://10.0.0.1:5001", NetworkServiceNames: []string{service},
				NetworkServiceLabels: map[string]*api.NetworkServiceLabels{service: {Labels: map[string]string{"at": labels}}},
			}, nil
		})
		return err
	}
	changes := 0
	return report.Answer(func(t registryTask) (registryState, error) {
		for i := range t.Endpoints {
			if err := put(endpointName(i), serviceName(i), "begin"); err != nil {
				return registryState{}, err
			}
		}
		if t.Change != "" {
			changes++
			if err := put(t.Change, serviceName(0), fmt.Sprint(changes)); err != nil {
				return registryState{}, err
			}
		}
		return registryState{l.Addr().String()}, nil
	})
}

func endpointName(i int) string { return fmt.Sprint("endpoint-", i) }
func serviceName(i int) string  { return fmt.Sprint("service-", i/perService) }

// registry measures it.
func (o options) registry(ctx context.Context) (r *Registry, err error) {
	c, err := report.NewChild(nil, "registry")
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	r = &Registry{Endpoints: o.registered, Watchers: o.watchers}
	state, err := report.Ask[registryState](c, registryTask{Endpoints: o.registered})
	if err != nil {
		return nil, err
	}
	w, err := watch(ctx, state.Address, o.watchers)
	defer w.close()
	if err != nil {
		return nil, err
	}
	for _, q := range []struct {
		to   *Durations
		what func(i int) *api.NetworkServiceEndpoint
		want int
	}{
		{&r.ByName, func(i int) *api.NetworkServiceEndpoint { return &api.NetworkServiceEndpoint{Name: endpointName(i)} }, 1},
		{&r.ByService, func(i int) *api.NetworkServiceEndpoint { return ofService(serviceName(i)) }, perService},
	} {
		if *q.to, err = finds(ctx, w.clients[0], o.finds, func(i int) *api.NetworkServiceEndpoint { return q.what(i * 7919 % o.registered) }, q.want); err != nil {
			return nil, err
		}
	}
	var took []time.Duration
	for range o.changes {
		begun := time.Now()
		if _, err := report.Ask[registryState](c, registryTask{Change: endpointName(0)}); err != nil {
			return nil, err
		}
		if err := w.hear(ctx); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begun))
	}
	r.FanOut = durationsOf(took)
	if err := w.exactly(o.changes); err != nil {
		return nil, err
	}
	kib, err := probe.Resident(c.PID())
	r.Resident = float64(kib) / 1024
	return r, err
}

func ofService(name string) *api.NetworkServiceEndpoint {
	return &api.NetworkServiceEndpoint{NetworkServiceNames: []string{name}}
}

// finds measures n Finds, one after the other, each of which must find so many.
func finds(ctx context.Context, c api.NetworkServiceEndpointRegistryClient, n int, what func(int) *api.NetworkServiceEndpoint, want int) (Durations, error) {
	var took []time.Duration
	for i := range n {
		begun := time.Now()
		got, err := find(ctx, c, what(i))
		if err != nil {
			return Durations{}, err
		}
		took = append(took, time.Since(begun))
		if got != want {
			return Durations{}, fmt.Errorf("%d endpoints found, want %d", got, want)
		}
	}
	return durationsOf(took), nil
}

func (r *Report) registryTable() string {
	if r.Registry == nil {
		return ""
	}
	g := r.Registry
	var b strings.Builder
	b.WriteString(r.heading())
	fmt.Fprintf(&b, "%d endpoints, %d watchers; resident %.0f MiB.\n\n", g.Endpoints, g.Watchers, g.Resident)
	b.WriteString("| milliseconds | n | p50 | p99 | slowest | must | |\n|---|---|---|---|---|---|---|\n")
	row := func(what string, d Durations, must string, met bool) {
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s | %s |\n", what, d.N, report.Figure(d.P50), report.Figure(d.P99), report.Figure(d.Max), must, report.Verdict(met))
	}
	find := func(what string, d Durations) {
		row(what, d, fmt.Sprintf("p99 < %v", findBound), d.P99 < findBound.Seconds()*1e3)
	}
	find("Find of one, by name", g.ByName)
	find(fmt.Sprintf("Find of a service's %d", perService), g.ByService)
	row("a change, until the last watcher knows", g.FanOut, fmt.Sprintf("< %v", fanOutBound), g.FanOut.Max < fanOutBound.Seconds()*1e3)
	return b.String()
}
