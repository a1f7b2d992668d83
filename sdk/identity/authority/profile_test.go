// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/credentials/insecure"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// requestProfile asks whoever gives out identities on a socket for a profile.
func requestProfile(ctx context.Context, socket, kind string, seconds uint32) (data []byte, err error) {
	conn, err := rpc.Dial(socket, rpc.DialOptions{Credentials: insecure.NewCredentials()})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stream, err := adminv1.NewAdminClient(conn).Profile(ctx, &adminv1.ProfileRequest{Kind: kind, Seconds: seconds})
	for err == nil {
		var piece *adminv1.ProfileChunk
		piece, err = stream.Recv()
		data = append(data, piece.GetData()...)
	}
	if errors.Is(err, io.EOF) {
		return data, nil
	}
	return data, err
}

// Authority and agent tell root and their own user what they spend time and memory on,
// nobody else, and nobody on the port for other nodes.
func TestProfile(t *testing.T) {
	var log bytes.Buffer
	ac := config(t)
	ac.Logger = newLog(&log)
	a := run(t, ac)
	bc := agentConfig(t, createToken(t, a, ""))
	runAgent(t, bc)
	for who, socket := range map[string]string{"authority": ac.Socket, "agent": bc.Socket} {
		data, err := requestProfile(t.Context(), socket, "goroutine", 0)
		if err != nil {
			t.Errorf("%s: %v", who, err)
			continue
		}
		r, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(r); err != nil || !bytes.Contains(text, []byte("authority.(*issuer).keepRotating")) {
			t.Errorf("%s: %v, not of this process: %q", who, err, text)
		}
		if data, err := requestProfile(t.Context(), socket, "cpu", 1); err != nil || !bytes.HasPrefix(data, []byte("\x1f\x8b")) {
			t.Errorf("%s, cpu: %.20q, %v", who, data, err)
		}
		for kind, seconds := range map[string]uint32{"cmdline": 0, "cpu": 301} {
			if _, err := requestProfile(t.Context(), socket, kind, seconds); !errors.Is(err, nserr.BadRequest) {
				t.Errorf("%s, %s for %d s: %v", who, kind, seconds, err)
			}
		}
		if got := nobody(t, "profile", socket); !strings.HasPrefix(got, "0 bytes, "+nserr.NotAllowed.Code) {
			t.Errorf("%s, uid 65534: %q", who, got)
		}
	}
	stream, err := adminv1.NewAdminClient(dialNodes(t, a, nil)).Profile(t.Context(), &adminv1.ProfileRequest{Kind: "goroutine"})
	if err == nil {
		_, err = stream.Recv()
	}
	if err == nil || !strings.Contains(err.Error(), "unknown service") {
		t.Errorf("over TCP: %v", err)
	}
	if err := a.Close(); err != nil { // nobody writes to the log any more
		t.Error(err)
	}
	if n := strings.Count(log.String(), "profile=goroutine"); n != 1 || !strings.Contains(log.String(), fmt.Sprintf(" uid=%d ", os.Getuid())) {
		t.Errorf("said %d times that a profile is asked for:\n%s", n, &log)
	}
	if n := strings.Count(log.String(), "profile="); n != 2 { // not of those that there are not
		t.Errorf("said %d times that any is asked for:\n%s", n, &log)
	}
}
