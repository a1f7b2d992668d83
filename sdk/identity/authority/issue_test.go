// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	identityv1 "github.com/openvwire/nsm/proto/nsm/identity/v1"
	"github.com/openvwire/nsm/sdk/identity/entries"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// fixed is an SVID that never changes.
type fixed struct{ svid *x509svid.SVID }

func (f fixed) GetX509SVID() (*x509svid.SVID, error) { return f.svid, nil }

func TestIssue(t *testing.T) {
	a := run(t, config(t))
	forger := run(t, config(t)) // of a domain with the same name
	mint := func(by *Authority, path string, ttl time.Duration) x509svid.Source {
		svid, err := by.issuer.mint(spiffeid.RequireFromPath(by.td, path), ttl)
		if err != nil {
			t.Fatal(err)
		}
		return fixed{svid}
	}
	agentB := mint(a, "/node/b/agent", time.Hour)
	path := func(p string) *identityv1.IssueRequest {
		return &identityv1.IssueRequest{Subject: &identityv1.IssueRequest_Path{Path: p}}
	}
	_, good := newRequest(t)
	for name, tt := range map[string]struct {
		as      x509svid.Source
		request *identityv1.IssueRequest
		csr     []byte
		want    *nserr.Reason // nil = issued
		id      string
	}{
		"part of the node":     {agentB, path("/node/b/manager"), good, nil, "spiffe://nsm.local/node/b/manager"},
		"itself":               {agentB, path("/node/b/agent"), good, nil, "spiffe://nsm.local/node/b/agent"},
		"workload":             {agentB, &identityv1.IssueRequest{Subject: &identityv1.IssueRequest_Workload{Workload: &identityv1.Workload{Uid: 7}}}, good, nil, "spiffe://nsm.local/node/b/uid/7"},
		"nil workload":         {agentB, &identityv1.IssueRequest{Subject: &identityv1.IssueRequest_Workload{}}, good, nil, "spiffe://nsm.local/node/b/uid/0"},
		"another node":         {agentB, path("/node/a/manager"), good, nserr.NotAllowed, ""},
		"node with its prefix": {agentB, path("/node/bc/manager"), good, nserr.NotAllowed, ""},
		"the authority":        {agentB, path("/authority"), good, nserr.NotAllowed, ""},
		"an entry's path":      {agentB, path("/payments/db"), good, nserr.NotAllowed, ""},
		"the node alone":       {agentB, path("/node/b"), good, nserr.NotAllowed, ""},
		"nothing below it":     {agentB, path("/node/b/"), good, nserr.BadRequest, ""},
		"up and away":          {agentB, path("/node/b/../a/agent"), good, nserr.BadRequest, ""},
		"no subject":           {agentB, &identityv1.IssueRequest{}, good, nserr.BadRequest, ""},
		"no request":           {agentB, path("/node/b/manager"), nil, nserr.BadRequest, ""},
		"no certificate":       {nil, path("/node/b/manager"), good, nserr.NoIdentity, ""},
		"another part":         {mint(a, "/node/b/manager", time.Hour), path("/node/b/manager"), good, nserr.NotAllowed, ""},
		"a workload asks":      {mint(a, "/payments/db/agent", time.Hour), path("/node/b/manager"), good, nserr.NotAllowed, ""},
		"expired certificate":  {mint(a, "/node/b/agent", -time.Second), path("/node/b/manager"), good, nserr.PeerDown, ""},
		"forged certificate":   {mint(forger, "/node/b/agent", time.Hour), path("/node/b/manager"), good, nserr.PeerDown, ""},
	} {
		t.Run(name, func(t *testing.T) {
			client := identityv1.NewAuthorityClient(dialNodes(t, a, tt.as))
			tt.request.Csr = tt.csr
			answer, err := client.Issue(t.Context(), tt.request)
			if tt.want != nil {
				if !errors.Is(rpc.DecodeError(err), tt.want) {
					t.Errorf("Issue() = %v, want %v", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(answer.GetChain()[0])
			if err != nil {
				t.Fatal(err)
			}
			if id, err := x509svid.IDFromCert(cert); err != nil || id.String() != tt.id {
				t.Errorf("issued %s, %v, want %s", id, err, tt.id)
			}
		})
	}
	for name, as := range map[string]x509svid.Source{"no certificate": nil, "workload": mint(a, "/node/b/uid/0", time.Hour)} {
		stream, err := identityv1.NewAuthorityClient(dialNodes(t, a, as)).WatchBundles(t.Context(), &identityv1.WatchBundlesRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if r := nserr.From(rpc.DecodeError(err)).Reason; r != nserr.NoIdentity && r != nserr.NotAllowed {
			t.Errorf("WatchBundles with %s: %v", name, err)
		}
	}
}

// A connection may outlive the certificate it was made with.
func TestExpiredOnOpenConnection(t *testing.T) {
	t.Parallel() // it mostly waits
	a := run(t, config(t))
	svid, err := a.issuer.mint(spiffeid.RequireFromPath(a.td, "/node/b/agent"), 5*time.Second) // less what its second has behind it
	if err != nil {
		t.Fatal(err)
	}
	client := identityv1.NewAuthorityClient(dialNodes(t, a, fixed{svid}))
	_, csr := newRequest(t)
	request := &identityv1.IssueRequest{Csr: csr, Subject: &identityv1.IssueRequest_Path{Path: "/node/b/manager"}}
	if _, err := client.Issue(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	<-time.After(time.Until(svid.Certificates[0].NotAfter.Add(time.Millisecond)))
	if _, err := client.Issue(t.Context(), request); !errors.Is(rpc.DecodeError(err), nserr.NoIdentity) {
		t.Errorf("Issue() with an expired certificate = %v", err)
	}
}

// Whatever a node's agent asks for, it gets an identity of its own node or one
// that an entry gives to its workloads.
func FuzzSubject(f *testing.F) {
	list, err := entries.Parse("f", []byte("- path: /payments/db\n  selectors: {uid: 1001}\n"))
	if err != nil {
		f.Fatal(err)
	}
	a := &Authority{td: td, entries: list, ttl: defaultTTL, agentTTL: defaultAgentTTL}
	f.Add("/node/b/manager", uint32(0), uint32(0), "")
	f.Add("/node/b/../a/agent", uint32(1001), uint32(1001), "/usr/bin/psql")
	f.Add("/node/b//agent", uint32(1<<31), uint32(0), "/node/a")
	f.Fuzz(func(t *testing.T, path string, uid, gid uint32, exe string) {
		id, _, err := a.subject("b", &identityv1.IssueRequest{Subject: &identityv1.IssueRequest_Path{Path: path}})
		if err == nil && (id.TrustDomain() != td || !strings.HasPrefix(id.Path(), "/node/b/") || id.Path() != path) {
			t.Errorf("the path %q gives %s", path, id)
		}
		id, ttl, err := a.subject("b", &identityv1.IssueRequest{Subject: &identityv1.IssueRequest_Workload{
			Workload: &identityv1.Workload{Uid: uid, Gid: gid, Exe: exe},
		}})
		if want := fmt.Sprintf("/node/b/uid/%d", uid); err != nil || ttl != defaultTTL || id.Path() != want && (id.Path() != "/payments/db" || uid != 1001) {
			t.Errorf("uid %d gives %s for %v, %v", uid, id, ttl, err)
		}
	})
}
