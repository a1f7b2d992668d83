// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/report"
)

// perService is how many endpoints each network service has.
const perService = 50

// registryQuestion is a question to a "registry-load" child: one of its fields
// besides For is set.
type registryQuestion struct {
	Call     *place        // from now on
	Register int           // so that there are so many, unless time is over before
	Find     string        // "service" or "name", one after the other, at random
	Watch    int           // change an endpoint that so many watch, and wait until all have heard of it
	For      time.Duration // how long
}

// registryAnswer is what came of it.
type registryAnswer struct {
	Endpoints int
	Times     loadAnswer // of each Register, each Find, or each change until all had heard
}

func registryLoadRole([]string) error {
	l := new(registryLoad)
	return report.Answer(l.do)
}

// registryLoad calls a registry over one connection, as a manager does. It serves
// one question at a time.
type registryLoad struct {
	cc        *grpc.ClientConn
	endpoints int // registered
	changes   int
}

func (l *registryLoad) do(q registryQuestion) (a registryAnswer, err error) {
	switch {
	case q.Call != nil:
		return a, l.call(*q.Call)
	case q.Register > 0:
		a.Times, err = l.register(q.Register, q.For)
	case q.Find != "":
		a.Times, err = repeat(q.For, func() error { return l.find(q.Find) })
	default:
		a.Times, err = l.watch(q.Watch, q.For)
	}
	a.Endpoints = l.endpoints
	return a, err
}

func (l *registryLoad) call(p place) error {
	s, err := p.identity()
	if err != nil {
		return err
	}
	creds, _ := ours.Credentials(s)
	l.cc, err = rpc.Dial(p.Registry, rpc.DialOptions{Credentials: creds, Tokens: ours.Tokens(s)})
	return err
}

// nse is the endpoint with a number.
func nse(i int) *api.NetworkServiceEndpoint {
	service := serviceOf(i)
	return &api.NetworkServiceEndpoint{
		Name: fmt.Sprintf("endpoint-%d", i), Url: "tcp://127.0.0.1:5000", NetworkServiceNames: []string{service},
		NetworkServiceLabels: map[string]*api.NetworkServiceLabels{service: {Labels: map[string]string{"app": "bench"}}},
	}
}

func serviceOf(i int) string { return fmt.Sprintf("service-%d", i/perService) }

func (l *registryLoad) put(e *api.NetworkServiceEndpoint) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_, err := api.NewNetworkServiceEndpointRegistryClient(l.cc).Register(regpath.Path{}.ToOutgoing(ctx), e)
	return err
}

// register registers endpoints, 8 at a time.
func (l *registryLoad) register(upTo int, most time.Duration) (a loadAnswer, err error) {
	const atATime = 8
	var (
		mu      sync.Mutex
		took    []time.Duration // guarded by mu
		failed  error           // guarded by mu
		next    atomic.Int64
		working sync.WaitGroup
	)
	next.Store(int64(l.endpoints))
	start := time.Now()
	for range atATime {
		working.Go(func() {
			for time.Since(start) < most {
				i := next.Add(1) - 1
				if i >= int64(upTo) {
					return
				}
				began := time.Now()
				err := l.put(nse(int(i)))
				mu.Lock()
				took = append(took, time.Since(began))
				failed = errors.Join(failed, err)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	working.Wait()
	a = answerOf(took, time.Since(start))
	l.endpoints += len(took)
	return a, failed
}

func answerOf(took []time.Duration, elapsed time.Duration) loadAnswer {
	a := loadAnswer{Done: len(took), Elapsed: elapsed}
	if len(took) > 0 {
		a.P50, a.P99 = report.Quantile(took, 0.5), report.Quantile(took, 0.99)
	}
	return a
}

// repeat calls f again and again for some time, at least once.
func repeat(d time.Duration, f func() error) (loadAnswer, error) {
	var took []time.Duration
	start := time.Now()
	for len(took) == 0 || time.Since(start) < d {
		began := time.Now()
		if err := f(); err != nil {
			return loadAnswer{}, err
		}
		took = append(took, time.Since(began))
	}
	return answerOf(took, time.Since(start)), nil
}

// find looks for the endpoints of a service, or for one by its name.
func (l *registryLoad) find(by string) error {
	i := rand.IntN(l.endpoints)
	query, want := &api.NetworkServiceEndpoint{Name: nse(i).Name}, 1
	if by == "service" {
		i = rand.IntN(max(l.endpoints/perService, 1)) * perService
		query, want = &api.NetworkServiceEndpoint{NetworkServiceNames: []string{serviceOf(i)}}, min(perService, l.endpoints)
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	stream, err := api.NewNetworkServiceEndpointRegistryClient(l.cc).Find(regpath.Path{}.ToOutgoing(ctx), &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: query})
	if err != nil {
		return err
	}
	found := 0
	for ; ; found++ {
		if _, err := stream.Recv(); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
	}
	// The reference matches a name by its beginning.
	if found < want || (by == "service" && found > want && l.endpoints <= 10*perService) {
		return fmt.Errorf("found %d of %v, want %d", found, query, want)
	}
	return nil
}

// watch has so many watchers of a service's endpoints, each with a stream of its
// own, and changes one of the endpoints again and again.
func (l *registryLoad) watch(watchers int, d time.Duration) (a loadAnswer, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	heard := make(chan string, watchers)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	streams := make([]api.NetworkServiceEndpointRegistry_FindClient, watchers)
	for i := range streams {
		streams[i], err = api.NewNetworkServiceEndpointRegistryClient(l.cc).Find(regpath.Path{}.ToOutgoing(ctx), &api.NetworkServiceEndpointQuery{
			NetworkServiceEndpoint: &api.NetworkServiceEndpoint{NetworkServiceNames: []string{serviceOf(0)}}, Watch: true,
		})
		if err != nil {
			return a, err
		}
		// The first state has come when everybody there is has been told of.
		for range min(perService, l.endpoints) {
			if _, err := streams[i].Recv(); err != nil {
				return a, err
			}
		}
	}
	for _, s := range streams {
		watching.Go(func() {
			for {
				r, err := s.Recv()
				if err != nil {
					return
				}
				select {
				case heard <- r.GetNetworkServiceEndpoint().GetNetworkServiceLabels()[serviceOf(0)].GetLabels()["change"]:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return repeat(d, func() error {
		l.changes++
		change := fmt.Sprint(l.changes)
		e := nse(0)
		e.NetworkServiceLabels[serviceOf(0)].Labels["change"] = change
		if err := l.put(e); err != nil {
			return err
		}
		timeout := time.After(callTimeout)
		for left := watchers; left > 0; {
			select {
			case told := <-heard:
				if told == change {
					left--
				}
			case <-timeout:
				return fmt.Errorf("%d of %d watchers have not heard of a change", left, watchers)
			}
		}
		return nil
	})
}
