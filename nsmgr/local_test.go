// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
)

// The forwarders of a node are found by name, whatever comes and goes beside
// them, and without looking at the rest.
func TestLocalForwarders(t *testing.T) {
	l := newLocals("forwarder", func(context.Context, string) {})
	defer l.close()
	now := time.Now()
	set := func(name, service string, life time.Duration) {
		l.set(name, &local{
			nse:     &registry.NetworkServiceEndpoint{Name: name, NetworkServiceNames: []string{service}},
			expires: now.Add(life), release: func() {},
		})
	}
	for i := range 2000 {
		set(fmt.Sprint("e-", i), "db", time.Minute)
	}
	check := func(want ...string) {
		t.Helper()
		var got []string
		for _, f := range l.forwarders(now) {
			got = append(got, f.nse.GetName())
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("forwarders %v, want %v", got, want)
		}
	}
	check()
	set("f-2", "forwarder", time.Minute)
	set("f-3", "forwarder", time.Minute)
	set("f-1", "forwarder", time.Minute)
	check("f-1", "f-2", "f-3")
	set("f-2", "forwarder", -time.Second)
	check("f-1", "f-3")
	set("f-2", "forwarder", time.Minute) // registered again
	check("f-1", "f-2", "f-3")
	set("f-3", "db", time.Minute)
	set("e-7", "forwarder", time.Minute)
	l.set("f-1", nil)
	check("e-7", "f-2")
	if n := testing.AllocsPerRun(100, func() { l.forwarders(now) }); n > 2 {
		t.Errorf("%v allocations to find two forwarders among 2000 endpoints", n)
	}
}
